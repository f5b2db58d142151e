#!/usr/bin/env bash
# Installs what is missing on this machine: for the build (`setup.sh`), for the tests (`setup.sh test`), for `make check`
# (`setup.sh check`), for `make bench` (`setup.sh bench`), and for `make bench-micro` (`setup.sh micro`).
# Uses apt as root, or with a sudo that does not ask for a password. Otherwise it says what to install.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=docker/lib.sh
. "$(dirname "$0")/docker/lib.sh"

top=$(cd "$(dirname "$0")/.." && pwd)
wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$top/Cargo.toml")

# new_enough VERSION
new_enough() { [ "$(printf '%s\n%s\n' "$wanted" "$1" | sort -V | head -n 1)" = "$wanted" ]; }

has_apt() { command -v apt-get >/dev/null && can_be_root; }

apt_update() {
    # An update that fails in part, for example for a third party's list, is not an error.
    as_root timeout 300 apt-get update -qq >/dev/null 2>&1 || true
}

missing=()
# needs COMMAND PACKAGE...
needs() {
    local command=$1
    shift
    command -v "$command" >/dev/null || missing+=("$@")
}

needs make make
needs cc gcc libc6-dev
needs curl curl
if [ -e /etc/debian_version ] && [ ! -s /etc/ssl/certs/ca-certificates.crt ]; then missing+=(ca-certificates); fi
if [ "${1:-}" = test ] || [ "${1:-}" = check ]; then
    needs mandoc mandoc
    needs systemd-analyze systemd
    # The console's tests use a real browser.
    needs chromedriver chromium chromium-driver fonts-dejavu-core
fi
case ${1:-} in test | check | bench)
    needs python3 python3
    python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
    ;;
esac
if [ "${1:-}" = bench ]; then
    needs amqp-consume amqp-tools
    needs setpriv util-linux
fi
if [ "${1:-}" = micro ]; then needs valgrind valgrind; fi
if [ "${1:-}" = check ]; then
    needs shellcheck shellcheck
    needs git git
    # libFuzzer is built from source.
    needs c++ g++
fi
if [ "${#missing[@]}" -gt 0 ]; then
    has_apt || die "these packages are missing, please install them: ${missing[*]}"
    say "installing ${missing[*]}"
    apt_update
    as_root env DEBIAN_FRONTEND=noninteractive timeout 900 \
        apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null 2>&1 ||
        die "apt-get could not install ${missing[*]}; install them yourself and try again"
fi

if ! command -v cargo >/dev/null; then
    packaged=
    if has_apt; then
        apt_update
        packaged=$(apt-cache policy cargo 2>/dev/null | sed -n 's/^ *Candidate: \([0-9.]*\).*/\1/p')
    fi
    if [ -z "$packaged" ] || ! new_enough "$packaged"; then
        die "Rust $wanted or later is needed and not installed; install it as described on https://rustup.rs"
    fi
    say "installing Rust $packaged"
    as_root env DEBIAN_FRONTEND=noninteractive timeout 900 \
        apt-get install -qq -y --no-install-recommends cargo rustc rust-clippy rustfmt >/dev/null 2>&1 ||
        die "apt-get could not install cargo; install Rust as described on https://rustup.rs"
fi
have=$(cargo --version | cut -d ' ' -f 2)
new_enough "$have" || die "Rust $wanted or later is needed, but this is $have; run \`rustup update\`"

if [ "${1:-}" = test ] || [ "${1:-}" = check ]; then
    "$(dirname "$0")/prometheus.sh" >/dev/null
    "$(dirname "$0")/helm.sh" >/dev/null
fi
