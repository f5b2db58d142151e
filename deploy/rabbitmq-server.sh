#!/usr/bin/env bash
# Prints the path of a rabbitmq-server program, after installing Debian's package where there is none and that is possible.
# It is for a private node: the package's system service is neither started nor enabled.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=docker/lib.sh
. "$(dirname "$0")/docker/lib.sh"

find_server() {
    # Debian's own comes before the one in PATH, a wrapper around it that insists on root and on the system's folders.
    local candidate
    for candidate in /usr/lib/rabbitmq/bin/rabbitmq-server "$(command -v rabbitmq-server || true)" \
        /usr/local/sbin/rabbitmq-server /usr/sbin/rabbitmq-server; do
        if [ -x "$candidate" ]; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

find_server && exit
command -v apt-get >/dev/null || die "there is no rabbitmq-server on this machine; install RabbitMQ 3.10 or later, or Docker"
can_be_root || die "there is no rabbitmq-server on this machine; install the package rabbitmq-server, or Docker"
lock rabbitmq-server
find_server && exit

# What packages ask before they start a service. The machine's own answer, should it have one, comes back afterwards.
policy=/usr/sbin/policy-rc.d
restore() {
    as_root rm -f "$policy"
    if [ -e "$policy.before-rabbitmq" ]; then as_root mv "$policy.before-rabbitmq" "$policy"; fi
}
if [ -e "$policy" ]; then as_root mv "$policy" "$policy.before-rabbitmq"; fi
trap restore EXIT
trap 'exit 1' HUP INT TERM
printf '#!/bin/sh\nexit 101\n' | as_root install -m 755 /dev/stdin "$policy"

say "installing rabbitmq-server (without its system service)"
as_root timeout 300 apt-get update -qq >/dev/null 2>&1 || true
as_root env DEBIAN_FRONTEND=noninteractive timeout 600 \
    apt-get install -qq -y --no-install-recommends rabbitmq-server >/dev/null 2>&1 9>&- ||
    die "the package rabbitmq-server can not be installed; install RabbitMQ 3.10 or later, or Docker"
if command -v systemctl >/dev/null; then
    as_root timeout 60 systemctl disable --quiet rabbitmq-server.service >/dev/null 2>&1 || true
fi
find_server || die "the package rabbitmq-server brought no rabbitmq-server"
