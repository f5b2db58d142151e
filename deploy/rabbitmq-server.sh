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

install_without_service rabbitmq-server ||
    die "the package rabbitmq-server can not be installed; install RabbitMQ 3.10 or later, or Docker"
find_server || die "the package rabbitmq-server brought no rabbitmq-server"
