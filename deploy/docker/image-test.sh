#!/usr/bin/env bash
# Runs the worker's image, as restricted as in production, against a real RabbitMQ and the sandbox CRM of the same image.
# Usage: image-test.sh [IMAGE]
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

image=${1:-wolkvox-task-worker:latest}
here=$(cd "$(dirname "$0")" && pwd)
name="wolkvox-task-worker-image-test-$$"
token="image-test-token"
tasks=5

need_docker
command -v curl >/dev/null || die "curl is not installed"
present "$image" || die "there is no image $image; make it with \`make image\`"
"$here/rabbitmq-image.sh"

failed() {
    for part in rabbitmq sandbox worker; do
        say "--- the last words of $part"
        docker logs --tail 20 "$name-$part" >&2 2>&1 || true
    done
    die "$*"
}

# shellcheck disable=SC2317 # called by the trap
clean_up() {
    timeout 60 docker rm -fv "$name-worker" "$name-sandbox" "$name-rabbitmq" "$name-publish" >/dev/null 2>&1 || true
    timeout 60 docker network rm "$name" >/dev/null 2>&1 || true
}
trap clean_up EXIT
trap 'exit 1' HUP INT TERM

# wait_for SECONDS WHAT COMMAND...
wait_for() {
    local limit=$1 what=$2
    shift 2
    local end=$((SECONDS + limit))
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || failed "not within $limit s: $what"
        sleep 0.5
    done
}

docker network create "$name" >/dev/null
run() {
    local part=$1
    shift
    docker run --name "$name-$part" --network "$name" --network-alias "$part" "$@" >/dev/null
}
hardened=(--read-only --cap-drop ALL --security-opt no-new-privileges)
broker=WTW_BROKER_URLS=amqp://guest:guest@rabbitmq:5672/%2f

run rabbitmq --detach rabbitmq:4-management
run sandbox --detach "${hardened[@]}" --no-healthcheck --publish 127.0.0.1::8089 "$image" \
    sandbox --listen 0.0.0.0:8089 --token "$token" --operation demo
run worker --detach "${hardened[@]}" --tmpfs /var/lib/wolkvox-task-worker:uid=10001,gid=10001,mode=0750 \
    --health-interval 1s --memory 256m --env "$broker" --env WTW_CRM_SERVER=http://sandbox:8089 \
    --env WTW_CRM_OPERATION=demo --env "WTW_CRM_TOKENS=$token" "$image"

healthy() { [ "$(docker inspect --format '{{.State.Health.Status}}' "$name-worker")" = healthy ]; }
wait_for 120 "the worker is healthy" healthy
say "healthy after $SECONDS s"
[ "$(docker exec "$name-worker" id -u)" = 10001 ] || failed "the worker does not run as user 10001"

for ((number = 1; number <= tasks; number++)); do
    printf '{"name":"Call back %d","name_module":"contacts","completion_date":"2030-01-15 10:00:00","id_record":"%d",' \
        "$number" "$number"
    printf '"wolkvox_owner":"agent@example.com","description":"image test"}\n'
done | timeout 60 docker run --rm --interactive --name "$name-publish" --network "$name" "${hardened[@]}" --no-healthcheck \
    --env "$broker" "$image" publish - >&2 || failed "publish failed"

sandbox=http://$(docker port "$name-sandbox" 8089/tcp | head -n 1)
created() { curl --silent --fail --max-time 5 "$sandbox/sandbox/stats" | grep -Eq "\"distinct_created\": ?$tasks\b"; }
wait_for 60 "$tasks tasks are created" created
healthy || failed "the worker is not healthy any more"

started=$SECONDS
timeout 60 docker stop --time 40 "$name-worker" >/dev/null
code=$(docker inspect --format '{{.State.ExitCode}}' "$name-worker")
[ "$code" = 0 ] || failed "the worker ended with $code on SIGTERM"
[ $((SECONDS - started)) -le 30 ] || failed "the worker took $((SECONDS - started)) s to stop"
if docker logs "$name-worker" 2>&1 | grep -q "$token"; then failed "the worker's log shows a token"; fi

docker image inspect --format '{{.Size}}' "$image" |
    awk -v image="$image" -v tasks="$tasks" '{ printf "%s: %.0f MB, %d tasks created, stopped with 0\n", image, $1 / 1e6, tasks }'
