#!/usr/bin/env bash
# Builds the worker and its contenders, and measures them. Arguments go to the benchmark (`tests/bench.sh --help`). With `micro`
# it counts the instructions of single stages instead, and shows the difference from the last run.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PATH:$HOME/.cargo/bin
# One target folder for both workspaces, so that libraries are built once.
export CARGO_TARGET_DIR=$PWD/target
bench() { cargo "$1" --locked --manifest-path tests/bench/Cargo.toml "${@:2}"; }

if [ "${1:-}" = micro ]; then
    deploy/setup.sh micro
    version=$(sed -n '/^name = "gungraun-runner"$/{n;s/version = "\(.*\)"/\1/p}' tests/bench/Cargo.lock)
    tools=$PWD/target/tools
    if [ "$("$tools/bin/gungraun-runner" --version 2>/dev/null | cut -d ' ' -f 2)" != "$version" ]; then
        echo "installing gungraun-runner $version" >&2
        env -u CARGO_TARGET_DIR cargo install --quiet --locked --force --root "$tools" gungraun-runner --version "$version"
    fi
    GUNGRAUN_RUNNER=$tools/bin/gungraun-runner bench bench --bench micro -- "${@:2}"
    exit
fi

deploy/setup.sh bench
cargo build --locked --release --bin wolkvox-task-worker
bench build --release
venv=target/bench/venv
if ! cmp --silent tests/bench/requirements.txt "$venv/requirements.txt"; then
    python3 -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement tests/bench/requirements.txt
    cp tests/bench/requirements.txt "$venv/"
fi
# The image's size is in the table of a full run.
if [ $# = 0 ] && timeout 20 docker version >/dev/null 2>&1; then deploy/docker/image.sh; fi
exec target/release/bench "$@"
