#!/usr/bin/env bash
# Prints the folder of prometheus and promtool for the tests: this machine's own, otherwise Debian's, unpacked into target/ so
# that no service is installed.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=docker/lib.sh
. "$(dirname "$0")/docker/lib.sh"

if command -v prometheus >/dev/null && command -v promtool >/dev/null; then
    dirname "$(command -v promtool)"
    exit
fi
tools=$(cd "$(dirname "$0")/.." && pwd)/target/tools
found=$tools/prometheus/usr/bin
if [ -x "$found/promtool" ]; then
    echo "$found"
    exit
fi
command -v apt-get >/dev/null || die "there is no prometheus and promtool on this machine; install Prometheus 2.42 or later"
lock prometheus
if [ ! -x "$found/promtool" ]; then
    say "fetching Debian's prometheus"
    mkdir -p "$tools"
    fresh=$(mktemp -d "$tools/prometheus.XXXXXX")
    trap 'rm -rf "$fresh"' EXIT
    # fetch PACKAGE
    fetch() {
        (cd "$fresh" && timeout 600 apt-get download -qq "$1" >/dev/null 2>&1) &&
            dpkg-deb --extract "$fresh/$1"_*.deb "$fresh" && rm -f "$fresh/$1"_*.deb
    }
    if ! fetch prometheus; then
        # The machine may not have package lists yet.
        if can_be_root; then as_root timeout 300 apt-get update -qq >/dev/null 2>&1 || true; fi
        fetch prometheus || die "cannot download the package prometheus; install Prometheus 2.42 or later"
    fi
    # Since Debian 13 promtool is a separate package.
    if [ ! -x "$fresh/usr/bin/promtool" ]; then
        fetch promtool || die "cannot download the package promtool; install Prometheus 2.42 or later"
    fi
    rm -rf "$tools/prometheus"
    chmod 755 "$fresh"
    mv "$fresh" "$tools/prometheus"
fi
echo "$found"
