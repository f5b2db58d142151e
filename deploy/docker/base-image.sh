#!/usr/bin/env bash
# Makes sure that a Debian base image is on this machine: present, pulled, or made from Debian packages under the same tag.
# Usage: base-image.sh [debian:SUITE-slim]
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

tag=${1:-debian:trixie-slim}

need_docker
present "$tag" && exit
lock base
present "$tag" && exit
pull "$tag" && exit

case $tag in
    debian:*) suite=${tag#debian:} suite=${suite%-slim} ;;
    *) die "$tag can be neither pulled nor made here" ;;
esac
can_be_root || die "$tag can be neither pulled nor, without root or a sudo that asks nothing, made with debootstrap"
if [ ! -x /usr/sbin/debootstrap ] || [ ! -e /usr/share/keyrings/debian-archive-keyring.gpg ]; then
    command -v apt-get >/dev/null || die "$tag can not be pulled; install debootstrap and debian-archive-keyring to make it"
    say "installing debootstrap"
    # Package lists may be missing or old on a fresh machine; an update that fails in part may still be enough.
    as_root timeout 300 apt-get update -qq >/dev/null 2>&1 || true
    as_root env DEBIAN_FRONTEND=noninteractive timeout 300 \
        apt-get install -qq -y --no-install-recommends debootstrap debian-archive-keyring >/dev/null 2>&1 ||
        die "$tag can not be pulled; install debootstrap and debian-archive-keyring to make it"
fi

# Where this machine gets Debian itself from works here, a proxy or a mirror of the house included.
# shellcheck disable=SC2016 # apt's variables, not the shell's
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' 2>/dev/null |
    grep '^http' | head -n 1 || true)
mirror=${mirror:-http://deb.debian.org/debian}

root=$(mktemp -d)
trap 'as_root rm -rf --one-file-system "$root"' EXIT
say "making $tag with debootstrap from $mirror"
# A release that is newer than this debootstrap is made as sid is.
script=/usr/share/debootstrap/scripts/$suite
if [ ! -e "$script" ]; then script=/usr/share/debootstrap/scripts/sid; fi
as_root timeout 900 debootstrap --variant=minbase --include=ca-certificates "$suite" "$root/debian" "$mirror" "$script" \
    >"$root/log" 2>&1 || {
    tail -n 20 "$root/log" >&2
    die "debootstrap failed"
}
# What the official slim image leaves out too; and services do not start when a package is installed in a container.
# shellcheck disable=SC2016 # expanded by the inner shell
as_root sh -c '
    cd "$1"
    rm -rf var/cache/apt/*.bin var/cache/apt/archives/*.deb var/lib/apt/lists/* var/log/*.log
    find usr/share/doc usr/share/man usr/share/locale usr/share/info -type f ! -name copyright -delete
    printf "#!/bin/sh\nexit 101\n" >usr/sbin/policy-rc.d
    chmod 755 usr/sbin/policy-rc.d
' sh "$root/debian"
as_root tar -C "$root/debian" --one-file-system -c . | timeout 300 docker import --change 'CMD ["bash"]' - "$tag" >/dev/null
say "made $tag"
