# shellcheck shell=bash
# What the image scripts share. Sourced, never run.

say() { echo "$*" >&2; }
die() { say "error: $*"; exit 1; }

need_docker() {
    command -v docker >/dev/null || die "docker is not installed; see https://docs.docker.com/engine/install/"
    timeout 30 docker version >/dev/null 2>&1 || die "the Docker daemon does not answer; start it, or add $(id -un) to the group docker"
}

present() { timeout 30 docker image inspect "$1" >/dev/null 2>&1; }

# A registry that cannot be reached fails within seconds; the bound is for one that is slow.
pull() {
    say "pulling $1"
    timeout 300 docker pull --quiet "$1" >/dev/null 2>&1
}

# One run at a time, per user and kind of image; the lock ends with the process.
lock() {
    exec 9>>"${TMPDIR:-/tmp}/wolkvox-task-worker-$UID-$1.lock"
    flock --wait 1800 9 || die "another run has been making the $1 image for half an hour"
}

can_be_root() { [ "$UID" = 0 ] || sudo -n true 2>/dev/null; }

as_root() { if [ "$UID" = 0 ]; then "$@"; else sudo -n "$@"; fi; }
