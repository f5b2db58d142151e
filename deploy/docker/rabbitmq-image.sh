#!/usr/bin/env bash
# Makes sure that rabbitmq:4-management is on this machine: present, pulled, or built from Debian's packages under that tag.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

image_from_debian rabbitmq:4-management rabbitmq-server "$(dirname "$0")/rabbitmq.Dockerfile"
