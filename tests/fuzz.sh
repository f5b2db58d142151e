#!/usr/bin/env bash
# Fuzzes each target for SECONDS (`tests/fuzz.sh [SECONDS] [TARGET...]`). Sanitizers need a nightly toolchain and are not used: the
# worker forbids unsafe code, so fuzzing looks for panics, hangs and excessive memory. The corpus and the failing inputs are
# in target/fuzz.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60}
shift || true
targets=("$@")
if [ "${#targets[@]}" -eq 0 ]; then targets=(message rules reply answers headers configuration); fi

version=0.13.2
tools=${CARGO_TARGET_DIR:-$PWD/target}/tools
export PATH=$tools/bin:$PATH
if [ "$(cargo fuzz --version 2>/dev/null)" != "cargo-fuzz $version" ]; then
    echo "installing cargo-fuzz $version" >&2
    cargo install --quiet --locked --force --root "$tools" cargo-fuzz --version "$version"
fi
work=${CARGO_TARGET_DIR:-$PWD/target}/fuzz
for target in "${targets[@]}"; do
    corpus=$work/corpus/$target
    mkdir -p "$corpus"
    if [ "$target" = answers ]; then cp tests/cases/answers/*.http "$corpus/"; fi
    echo "fuzzing $target for $seconds s" >&2
    log=$work/$target.log
    if ! cargo fuzz run --dev --sanitizer none --fuzz-dir tests/fuzz --target-dir "$work" "$target" "$corpus" -- \
        -max_total_time="$seconds" -max_len=65536 -timeout=10 -rss_limit_mb=1024 -artifact_prefix="$work/" >"$log" 2>&1; then
        tail -n 60 "$log" >&2
        echo "$target failed. The failing input is named above; the whole output is in $log. Run the target with that input to repeat it." >&2
        exit 1
    fi
    grep '^Done ' "$log"
done
