#!/usr/bin/env bash
# Provides an image of RabbitMQ: it is already present, or pulled, or built from Debian's packages under the same tag.
# Prints the tag. BROKER names the version, by default 4; Debian has 3.10, 4.0 and 4.3.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

version=${BROKER:-4}
case $version in
    3.10) suite=bookworm ;;
    4 | 4.0) suite=trixie ;;
    4.3) suite=forky ;;
    *) suite= ;;
esac
image_from_debian "rabbitmq:$version-management" rabbitmq-server "$(dirname "$0")/rabbitmq.Dockerfile" "${suite:+debian:$suite-slim}"
echo "rabbitmq:$version-management"
