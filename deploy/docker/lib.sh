# shellcheck shell=bash
# Functions that the scripts share. Source this file, do not run it.

say() { echo "$*" >&2; }
die() { say "error: $*"; exit 1; }

need_docker() {
    command -v docker >/dev/null || die "docker is not installed; install it: https://docs.docker.com/engine/install/"
    timeout 30 docker version >/dev/null 2>&1 || die "the Docker daemon does not answer; start it, or add $(id -un) to the group docker"
}

present() { timeout 30 docker image inspect "$1" >/dev/null 2>&1; }

# A registry that cannot be reached fails within seconds. The timeout is for a slow one.
pull() {
    say "pulling $1"
    timeout 300 docker pull --quiet "$1" >/dev/null 2>&1
}

# Allows one run at a time for each user and kind of image. The lock ends with the process.
lock() {
    exec 9>>"${TMPDIR:-/tmp}/wolkvox-task-worker-$UID-$1.lock"
    flock --wait 1800 9 || die "another run has built or fetched $1 for half an hour; wait for it or stop it"
}

can_be_root() { [ "$UID" = 0 ] || sudo -n true 2>/dev/null; }

as_root() { if [ "$UID" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

# image_from_debian TAG PACKAGE DOCKERFILE [BASE]: provides an image that is already present, or pulled, or built from Debian's
# package under that tag. BASE is empty if no release of Debian has this version.
image_from_debian() {
    local tag=$1 package=$2 dockerfile=$3 base=${4-debian:trixie-slim} log
    need_docker
    if present "$tag"; then return; fi
    lock "$package-image"
    if present "$tag" || pull "$tag"; then return; fi

    if [ -z "$base" ]; then die "$tag cannot be pulled, and no release of Debian has this version; choose another one with BROKER"; fi
    "$(dirname "$dockerfile")/base-image.sh" "$base"
    say "building $tag from $package of $base"
    log=$(mktemp)
    # The Dockerfile comes from standard input, so no build context is sent.
    if ! timeout 900 docker build --quiet --tag "$tag" --build-arg "BASE_IMAGE=$base" - <"$dockerfile" >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        die "$tag can be neither pulled nor built; the last lines of the build are above"
    fi
    rm -f "$log"
    say "built $tag"
}

# install_without_service PACKAGE: installs a server's package without starting or enabling its system service.
install_without_service() (
    package=$1
    # Packages run this program before they start a service. The machine's own file, if there is one, is restored afterwards.
    policy=/usr/sbin/policy-rc.d
    # shellcheck disable=SC2317 # the trap calls it
    restore() {
        as_root rm -f "$policy"
        if [ -e "$policy.before-$package" ]; then as_root mv "$policy.before-$package" "$policy"; fi
    }
    # Two installations at the same time must not restore each other's file.
    exec 8>>"${TMPDIR:-/tmp}/wolkvox-task-worker-$UID-policy.lock"
    flock --wait 1800 8 || return 1
    if [ -e "$policy" ]; then as_root mv "$policy" "$policy.before-$package"; fi
    trap restore EXIT
    trap 'exit 1' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' | as_root install -m 755 /dev/stdin "$policy" || return 1

    say "installing $package (without its system service)"
    as_root timeout 300 apt-get update -qq >/dev/null 2>&1 || true
    as_root env DEBIAN_FRONTEND=noninteractive timeout 600 \
        apt-get install -qq -y --no-install-recommends "$package" >/dev/null 2>&1 8>&- 9>&- || return 1
    if command -v systemctl >/dev/null; then
        as_root timeout 60 systemctl disable --quiet "$package.service" >/dev/null 2>&1 || true
    fi
)
