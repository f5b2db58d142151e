#!/usr/bin/env bash
# Provides a Debian base image: it is already present, or pulled, or built from Debian packages under the same tag.
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
    *) die "$tag cannot be pulled, and this script can build only Debian images" ;;
esac
can_be_root || die "$tag cannot be pulled, and building it with debootstrap needs root, or a sudo that does not ask for a password"
if [ ! -x /usr/sbin/debootstrap ] || [ ! -e /usr/share/keyrings/debian-archive-keyring.gpg ]; then
    command -v apt-get >/dev/null || die "$tag cannot be pulled; install debootstrap and debian-archive-keyring to build it"
    say "installing debootstrap"
    # A new machine can have no package lists or old ones. An update that fails in part can be enough.
    as_root timeout 300 apt-get update -qq >/dev/null 2>&1 || true
    as_root env DEBIAN_FRONTEND=noninteractive timeout 300 \
        apt-get install -qq -y --no-install-recommends debootstrap debian-archive-keyring >/dev/null 2>&1 ||
        die "$tag cannot be pulled; install debootstrap and debian-archive-keyring to build it"
fi

# Uses the Debian mirror of this machine, which can be a proxy or an internal mirror.
# shellcheck disable=SC2016 # apt's variables, not the shell's
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' 2>/dev/null |
    grep '^http' | head -n 1 || true)
mirror=${mirror:-http://deb.debian.org/debian}

root=$(mktemp -d)
trap 'as_root rm -rf --one-file-system "$root"' EXIT
say "building $tag with debootstrap from $mirror"
# A release that this debootstrap does not know yet is built with the script of sid.
script=/usr/share/debootstrap/scripts/$suite
if [ ! -e "$script" ]; then script=/usr/share/debootstrap/scripts/sid; fi
as_root timeout 900 debootstrap --variant=minbase --include=ca-certificates "$suite" "$root/debian" "$mirror" "$script" \
    >"$root/log" 2>&1 || {
    tail -n 20 "$root/log" >&2
    die "debootstrap failed; its last lines are above"
}
# Removes what the official slim image also leaves out, and prevents that installed packages start services in a container.
# shellcheck disable=SC2016 # expanded by the inner shell
as_root sh -c '
    cd "$1"
    rm -rf var/cache/apt/*.bin var/cache/apt/archives/*.deb var/lib/apt/lists/* var/log/*.log
    find usr/share/doc usr/share/man usr/share/locale usr/share/info -type f ! -name copyright -delete
    printf "#!/bin/sh\nexit 101\n" >usr/sbin/policy-rc.d
    chmod 755 usr/sbin/policy-rc.d
' sh "$root/debian"
as_root tar -C "$root/debian" --one-file-system -c . | timeout 300 docker import --change 'CMD ["bash"]' - "$tag" >/dev/null
say "built $tag"
