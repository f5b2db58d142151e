#!/usr/bin/env bash
# Makes sure that rabbitmq:4-management is on this machine: present, pulled, or built from Debian's packages under that tag.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

tag=rabbitmq:4-management
here=$(cd "$(dirname "$0")" && pwd)

need_docker
present "$tag" && exit
lock rabbitmq
present "$tag" && exit
pull "$tag" && exit

"$here/base-image.sh" debian:trixie-slim
say "building $tag from Debian's rabbitmq-server"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# The Dockerfile comes through standard input: there is nothing to send as context.
timeout 900 docker build --quiet --tag "$tag" - <"$here/rabbitmq.Dockerfile" >"$log" 2>&1 || {
    tail -n 20 "$log" >&2
    die "$tag can be neither pulled nor built"
}
say "built $tag"
