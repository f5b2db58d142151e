#!/usr/bin/env bash
# Tests the worker's image under the limits of the chart, with a real RabbitMQ and the sandbox CRM of the same image.
# For each kind of ledger it kills the worker and replaces it with another version while messages are processed. Then every task
# must be created once, or its message must be a dead letter.
# Usage: image-test.sh [IMAGE]
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

image=${1:-wolkvox-task-worker:latest}
here=$(cd "$(dirname "$0")" && pwd)
name="wolkvox-task-worker-image-test-$$"
token="image-test-token"
tasks=60

need_docker
command -v curl >/dev/null || die "curl is not installed"
present "$image" || die "there is no image $image; build it with \`make image\`"
rabbitmq=$("$here/rabbitmq-image.sh")
"$here/redis-image.sh"

parts=(rabbitmq redis sandbox)
failed() {
    for part in "${parts[@]}"; do
        say "--- the last lines of $part"
        docker logs --tail 20 "$name-$part" >&2 2>&1 || true
    done
    die "$*"
}

# shellcheck disable=SC2317 # called by the trap
clean_up() {
    timeout 120 docker rm -fv "${parts[@]/#/$name-}" "$name-tool" >/dev/null 2>&1 || true
    timeout 60 docker volume rm "$name" >/dev/null 2>&1 || true
    timeout 60 docker network rm "$name" >/dev/null 2>&1 || true
    timeout 60 docker rmi "$name:next" >/dev/null 2>&1 || true
}
trap clean_up EXIT
trap 'exit 1' HUP INT TERM

# wait_for SECONDS WHAT COMMAND...
wait_for() {
    local limit=$1 what=$2
    shift 2
    local end=$((SECONDS + limit))
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || failed "this did not happen within $limit s: $what"
        sleep 0.2
    done
}

run() {
    local part=$1
    shift
    docker run --name "$name-$part" --network "$name" --network-alias "$part" "$@" >/dev/null
}
# The same restrictions as in the chart.
hardened=(--read-only --user 10001:10001 --cap-drop ALL --security-opt no-new-privileges --tmpfs /tmp:size=64m --pids-limit 256)
broker=WTW_BROKER_URLS=amqp://guest:guest@rabbitmq:5672/%2f

# tool QUEUE ARGUMENT...: runs a command of the program on a queue.
tool() {
    local queue=$1
    shift
    timeout 60 docker run --rm --interactive --name "$name-tool" --network "$name" "${hardened[@]}" --no-healthcheck \
        --env "$broker" --env "WTW_BROKER_QUEUE=$queue" "$image" "$@"
}

# worker PART QUEUE IMAGE OPTION...: starts a worker in strict mode.
worker() {
    local part=$1 queue=$2 version=$3
    shift 3
    parts+=("$part")
    run "$part" --detach "${hardened[@]}" --memory 512m --health-interval 1s --env "$broker" --env "WTW_BROKER_QUEUE=$queue" \
        --env WTW_CRM_SERVER=http://sandbox:8089 --env WTW_CRM_OPERATION=demo --env "WTW_CRM_TOKENS=$token" \
        --env WTW_RETRY_ON_UNKNOWN=dead-letter --env "WTW_ADMIN_LISTEN=[::]:9464" "$@" "$version"
}

# shellcheck disable=SC2317 # called through wait_for
healthy() { [ "$(docker inspect --format '{{.State.Health.Status}}' "$name-$1")" = healthy ]; }
publish() {
    local number
    for ((number = 1; number <= tasks; number++)); do
        printf '{"name":"%s task %d.","name_module":"contacts","completion_date":"2030-01-15 10:00:00","id_record":"%d",' \
            "$1" "$number" "$number"
        printf '"wolkvox_owner":"agent@example.com","description":"image test"}\n'
    done | tool "$1" publish - >&2 || failed "publish failed"
}
created() { curl --silent --fail --max-time 5 "$sandbox/sandbox/tasks" | grep -o "\"$1 task [0-9]*\.\"" || true; }
dead() { tool "$1" dead-letters export 2>/dev/null | grep -o "$1 task [0-9]*\." | sed 's/.*/"&"/' | sort -u || true; }
# shellcheck disable=SC2317 # called through wait_for
at_least() { [ "$(created "$1" | wc -l)" -ge "$2" ]; }
# shellcheck disable=SC2317 # called through wait_for
complete() { [ "$({ created "$1"; dead "$1"; } | sort -u | wc -l)" = "$tasks" ]; }
# stop PART: stops a container as Kubernetes does.
stop() {
    local started=$SECONDS code
    timeout 60 docker stop --time 40 "$name-$1" >/dev/null
    code=$(docker inspect --format '{{.State.ExitCode}}' "$name-$1")
    [ "$code" = 0 ] || failed "$1 ended with $code on SIGTERM"
    [ $((SECONDS - started)) -le 30 ] || failed "$1 took $((SECONDS - started)) s to stop"
    if docker logs "$name-$1" 2>&1 | grep -q "$token"; then failed "the log of $1 shows a token"; fi
}
# result QUEUE: checks that no task is lost and none is created twice.
result() {
    wait_for 90 "every task of $1 is created or a dead letter" complete "$1"
    local twice
    twice=$(created "$1" | sort | uniq --repeated)
    [ -z "$twice" ] || failed "created twice: $twice"
    say "$1: $(created "$1" | wc -l) created, $(dead "$1" | wc -l) dead letters, of $tasks"
}

docker network create "$name" >/dev/null
printf 'FROM %s\nLABEL org.opencontainers.image.version=next\n' "$image" | docker build --quiet --tag "$name:next" - >/dev/null 2>&1
run rabbitmq --detach "$rabbitmq"
run redis --detach redis:8
run sandbox --detach "${hardened[@]}" --memory 128m --no-healthcheck --publish 127.0.0.1::8089 "$image" \
    sandbox --listen "[::]:8089" --token "$token" --operation demo --latency 200ms
sandbox=http://$(docker port "$name-sandbox" 8089/tcp | head -n 1)

# The default: one worker with its ledger on a volume. The old worker ends before the new one starts.
volume=(--volume "$name:/var/lib/wolkvox-task-worker")
worker file-1 file "$image" "${volume[@]}"
wait_for 300 "the worker is healthy" healthy file-1
say "healthy after $SECONDS s"
publish file
wait_for 60 "the first tasks are created" at_least file 5
docker kill "$name-file-1" >/dev/null
worker file-2 file "$image" "${volume[@]}"
wait_for 60 "the second worker continues" at_least file 20
stop file-2
worker file-3 file "$name:next" "${volume[@]}"
result file
stop file-3

# Two workers and Redis: the new standby is ready before an old worker stops.
ledger=(--env WTW_LEDGER_URL=redis://redis:6379/0 --tmpfs "/var/lib/wolkvox-task-worker:uid=10001,gid=10001,mode=0750")
worker redis-1 redis "$image" "${ledger[@]}"
wait_for 60 "the first worker is healthy" healthy redis-1
worker redis-2 redis "$image" "${ledger[@]}"
wait_for 60 "the standby is healthy" healthy redis-2
publish redis
wait_for 60 "the first tasks are created" at_least redis 5
docker kill "$name-redis-1" >/dev/null
wait_for 60 "the standby takes over" at_least redis 20
worker redis-3 redis "$name:next" "${ledger[@]}"
wait_for 60 "the new version is healthy" healthy redis-3
stop redis-2
result redis
stop redis-3

if docker run --rm --network none --entrypoint sh "$image" -c true 2>/dev/null; then failed "the image contains a shell"; fi
docker image inspect --format '{{.Size}}' "$image" | awk -v image="$image" '
    { printf "%s: %.1f MB\n", image, $1 / 1e6 }
    $1 >= 25e6 { print "the goal is less than 25 MB; look at docker history" >"/dev/stderr" }'
