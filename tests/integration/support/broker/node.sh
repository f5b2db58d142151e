#!/usr/bin/env bash
# Controls a private RabbitMQ node. All its files are in one folder and all its ports are on loopback.
# Usage: node.sh create FOLDER SERVER AMQP_PORT MANAGEMENT_PORT DISTRIBUTION_PORT EPMD_PORT METRICS_PORT
#        node.sh exec FOLDER PROGRAM ARGUMENT...
#        node.sh start|stop|kill|pause|unpause|remove FOLDER
set -euo pipefail

action=$1 folder=$2

create() {
    mkdir -m 700 "$folder"
    echo '[rabbitmq_management,rabbitmq_prometheus].' >"$folder/enabled_plugins"
    cat >"$folder/rabbitmq.conf" <<END
listeners.tcp.1 = 127.0.0.1:$4
management.tcp.ip = 127.0.0.1
management.tcp.port = $5
prometheus.tcp.ip = 127.0.0.1
prometheus.tcp.port = $8
END
    # Every path with a default elsewhere is set, so that the system's own RabbitMQ is neither read nor changed.
    cat >"$folder/settings" <<END
export HOME='$folder'
export ERL_EPMD_ADDRESS=127.0.0.1
export ERL_EPMD_PORT=$7
export RABBITMQ_ADVANCED_CONFIG_FILE='$folder/advanced.config'
export RABBITMQ_CONFIG_FILE='$folder/rabbitmq.conf'
export RABBITMQ_CONFIG_FILES='$folder/conf.d'
export RABBITMQ_CONF_ENV_FILE='$folder/rabbitmq-env.conf'
export RABBITMQ_DIST_PORT=$6
export RABBITMQ_ENABLED_PLUGINS_FILE='$folder/enabled_plugins'
export RABBITMQ_GENERATED_CONFIG_DIR='$folder/config'
export RABBITMQ_LOGS='$folder/log'
export RABBITMQ_LOG_BASE='$folder'
export RABBITMQ_MNESIA_BASE='$folder/mnesia'
export RABBITMQ_NODENAME='node$4@localhost'
export RABBITMQ_SCHEMA_DIR='$folder/schema'
export RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS='-kernel inet_dist_use_interface {127,0,0,1}'
server='$3'
END
}

# Sets the environment that the node and its tools read.
settings() {
    local name
    for name in "${!RABBITMQ_@}" "${!ERL_@}"; do unset "$name"; done
    server=
    # shellcheck source=/dev/null
    . "$folder/settings"
    cd "$folder"
}

# The node's process group. Its first process, a shell, has already ended.
signal() { [ -e "$folder/group" ] && kill "-$1" -- "-$(cat "$folder/group")" 2>/dev/null; }

gone() {
    local tick
    for ((tick = 0; tick < $1 * 10; tick++)); do
        signal 0 || return 0
        sleep 0.1
    done
    return 1
}

case $action in
    create)
        create "$@"
        ;;
    start)
        settings
        # shellcheck disable=SC2016 # expanded by the inner shell
        setsid sh -c 'echo $$ >group; "$1" </dev/null >>output 2>&1 &' sh "$server"
        ;;
    exec)
        settings
        shift 2
        PATH=$(dirname "$server"):$PATH exec "$@"
        ;;
    stop)
        signal TERM || true
        gone 40
        ;;
    kill)
        signal KILL || true
        gone 10
        ;;
    pause) signal STOP ;;
    unpause) signal CONT ;;
    remove)
        [ -e "$folder/settings" ] || exit 0
        signal KILL || true
        gone 10 || true
        settings
        # epmd refuses to stop for a moment, as long as it believes that the node is alive.
        for ((tick = 0; tick < 50; tick++)); do
            epmd -names >/dev/null 2>&1 || break
            epmd -kill >/dev/null 2>&1 || true
            sleep 0.1
        done
        cd /
        rm -rf "$folder"
        ;;
    *)
        echo "unknown action: $action" >&2
        exit 2
        ;;
esac
