#!/usr/bin/env bash
# Makes sure that redis:8 is on this machine: present, pulled, or built from Debian's packages under that tag.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

image_from_debian redis:8 redis-server "$(dirname "$0")/redis.Dockerfile"
