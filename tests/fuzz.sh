#!/usr/bin/env bash
# Fuzzes each target for so many seconds (`tests/fuzz.sh [SECONDS] [TARGET...]`), where a nightly toolchain is installed,
# which the sanitizers need. What it finds is kept under target/fuzz.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60}
shift || true
targets=("$@")
if [ "${#targets[@]}" -eq 0 ]; then targets=(message reply headers configuration); fi

if ! rustup toolchain list 2>/dev/null | grep -q '^nightly'; then
    echo "no nightly toolchain here: nothing is fuzzed (rustup toolchain install nightly)" >&2
    exit 0
fi
tools=${CARGO_TARGET_DIR:-$PWD/target}/tools
export PATH=$PATH:$tools/bin
if ! command -v cargo-fuzz >/dev/null; then
    echo "installing cargo-fuzz" >&2
    cargo install --quiet --locked --root "$tools" cargo-fuzz --version 0.13.2
fi
work=${CARGO_TARGET_DIR:-$PWD/target}/fuzz
mkdir -p "$work"
for target in "${targets[@]}"; do
    corpus=$work/corpus/$target
    mkdir -p "$corpus"
    echo "fuzzing $target for $seconds s" >&2
    cargo +nightly fuzz run --fuzz-dir tests/fuzz --target-dir "$work" "$target" "$corpus" -- \
        -max_total_time="$seconds" -max_len=65536 -artifact_prefix="$work/" -print_final_stats=0 -verbosity=0
done
