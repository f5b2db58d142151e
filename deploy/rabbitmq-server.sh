#!/usr/bin/env bash
# Prints the path of rabbitmq-server. Installs Debian's package if the program is missing and apt can be used.
# The tests start a private node: the package's system service is neither started nor enabled.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=docker/lib.sh
. "$(dirname "$0")/docker/lib.sh"

find_server() {
    # The program itself comes first: the one in PATH is a wrapper that requires root and uses the system's folders.
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
    die "cannot install the package rabbitmq-server; install RabbitMQ 3.10 or later, or Docker"
find_server || die "the package rabbitmq-server is installed, but has no rabbitmq-server program; install RabbitMQ 3.10 or later, or Docker"
