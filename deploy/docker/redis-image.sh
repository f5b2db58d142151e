#!/usr/bin/env bash
# Provides the image redis:8: it is already present, or pulled, or built from Debian's packages under that tag.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

image_from_debian redis:8 redis-server "$(dirname "$0")/redis.Dockerfile"
