#!/usr/bin/env bash
# Stops a demo: removes its processes, its own broker (if it has one), and its folder.
# Usage: stop.sh FOLDER
set -euo pipefail

folder=$1
[ -d "$folder" ] || exit 0
cd /

# The process ids that still belong to the demo: another program can have got an old id.
running() {
    local pid
    while read -r pid; do
        if grep -qs wolkvox-task-worker "/proc/$pid/cmdline"; then echo "$pid"; fi
    done <"$folder/pids"
}

touch "$folder/pids"
for signal in TERM KILL; do
    for pid in $(running); do kill "-$signal" "$pid" 2>/dev/null || true; done
    for ((tick = 0; tick < 100; tick++)); do
        [ -n "$(running)" ] || break
        sleep 0.1
    done
done
if [ -e "$folder/broker" ]; then sh "$folder/broker" >/dev/null; fi
# The logs of a failed demo stay.
if [ -e "$folder/failed" ]; then rm -f "$folder/pids"; else rm -rf "$folder"; fi
