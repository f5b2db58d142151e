#!/usr/bin/env bash
# Prints the path of redis-server. Installs Debian's package if the program is missing and apt can be used.
# The tests start a private server: the package's system service is neither started nor enabled.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=docker/lib.sh
. "$(dirname "$0")/docker/lib.sh"

command -v redis-server && exit
advice="install Redis 6 or later, or Docker"
command -v apt-get >/dev/null || die "there is no redis-server on this machine; $advice"
can_be_root || die "there is no redis-server on this machine; $advice"
lock redis-server
command -v redis-server && exit
install_without_service redis-server || die "cannot install the package redis-server; $advice"
command -v redis-server || die "the package redis-server is installed, but has no redis-server program; $advice"
