#!/usr/bin/env bash
# Ends a demo: its processes, its broker where it has one of its own, and its folder.
# Usage: stop.sh FOLDER
set -euo pipefail

folder=$1
[ -d "$folder" ] || exit 0
cd /

# What still runs of it; a number that another program has got since is not of it.
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
# The logs of a failed run are left to be read.
if [ -e "$folder/failed" ]; then rm -f "$folder/pids"; else rm -rf "$folder"; fi
