#!/usr/bin/env bash
# Builds the worker's image, wolkvox-task-worker:<version> and :latest. With Docker's cache an unchanged build takes seconds.
# BUILD_IMAGE, PACKAGES_IMAGE and RUNTIME_IMAGE replace the images of the Dockerfile.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$top/Cargo.toml" | head -n 1)
roots=$here/ca/machine.crt
log=$(mktemp)
trap 'rm -f "$log" "$roots"' EXIT

build() {
    timeout 3600 docker build "$@" >"$log" 2>&1 || {
        tail -n 30 "$log" >&2
        die "docker build failed; its last lines are above"
    }
}

# Prints the name of an image with cargo and a C compiler.
build_image() {
    local official=rust:1-slim-trixie own sysroot
    own=wolkvox-task-worker-build:$(rustc --version 2>/dev/null | cut -d ' ' -f 2 || true)
    if present "$official"; then echo "$official"; return; fi
    if [ "$own" != wolkvox-task-worker-build: ] && present "$own"; then echo "$own"; return; fi
    if pull "$official"; then echo "$official"; return; fi

    sysroot=$(rustc --print sysroot 2>/dev/null) || die "$official cannot be pulled, and this machine has no Rust to build with; install it from https://rustup.rs"
    # A distribution's Rust is spread over /usr and cannot be copied into an image.
    if [ "$sysroot" = /usr ] || [ ! -x "$sysroot/bin/cargo" ]; then
        die "$official cannot be pulled, and this machine's Rust was not installed with rustup; install it from https://rustup.rs"
    fi
    "$here/base-image.sh" debian:trixie-slim
    say "building $own from Debian and the Rust of this machine"
    tar -c --exclude=lib/rustlib/src -C "$here" build.Dockerfile -C "$sysroot" bin/cargo bin/rustc lib |
        build --tag "$own" --file build.Dockerfile -
    echo "$own"
}

need_docker
lock image
if [ -z "${BUILD_IMAGE:-}" ]; then BUILD_IMAGE=$(build_image); fi
PACKAGES_IMAGE=${PACKAGES_IMAGE:-debian:trixie-slim}
"$here/base-image.sh" "$PACKAGES_IMAGE"
bundle=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}
if [ -r "$bundle" ]; then cp "$bundle" "$roots"; fi

before=$(docker image inspect --format '{{.Id}}' "wolkvox-task-worker:$version" 2>/dev/null || true)
say "building wolkvox-task-worker:$version on $BUILD_IMAGE"
build --build-arg "BUILD_IMAGE=$BUILD_IMAGE" --build-arg "PACKAGES_IMAGE=$PACKAGES_IMAGE" \
    --build-arg "RUNTIME_IMAGE=${RUNTIME_IMAGE:-minimal}" --build-arg "VERSION=$version" \
    --build-arg "REVISION=$(git -C "$top" rev-parse HEAD 2>/dev/null || echo unknown)" \
    --build-arg "CREATED=$(git -C "$top" log -1 --format=%cI 2>/dev/null || date --utc +%FT%TZ)" \
    --tag "wolkvox-task-worker:$version" --tag wolkvox-task-worker:latest --file "$top/deploy/Dockerfile" "$top"
after=$(docker image inspect --format '{{.Id}}' "wolkvox-task-worker:$version")
if [ "$before" = "$after" ]; then say "up to date"; fi
docker image inspect --format '{{.Size}}' "$after" | awk '{ printf "wolkvox-task-worker: %.0f MB\n", $1 / 1e6 }' >&2
