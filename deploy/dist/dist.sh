#!/usr/bin/env bash
# Creates a release in dist: <name>-<version>-<target>.tar.gz, the Helm chart and SHA256SUMS. If the image of this version is on
# the machine, also the image for docker load and its bill of materials. The archive is reproducible: the same commit, toolchain
# and C library give the same bytes. CYCLONEDX names the tool that writes the archive's bill of materials.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../docker/lib.sh
. "$(dirname "$0")/../docker/lib.sh"

top=$(cd "$(dirname "$0")/../.." && pwd -P)
cd "$top"
program=wolkvox-task-worker
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
host=$(rustc -vV | sed -n 's/^host: //p')
sysroot=$(rustc --print sysroot)
cargo_home=$(cd "${CARGO_HOME:-$HOME/.cargo}" && pwd -P)
mkdir -p "${CARGO_TARGET_DIR:-target}/dist"
target=$(cd "${CARGO_TARGET_DIR:-target}/dist" && pwd -P)
# The time of the commit. Without a commit, as in an unpacked archive, it is 0.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
export SOURCE_DATE_EPOCH

# Removes this machine's paths from the program, so that the build is reproducible. If several prefixes match, rustc uses the
# last one. The machine's own flags are not used.
remap=(
    "--remap-path-prefix=$cargo_home=/cargo"
    "--remap-path-prefix=$sysroot=/rust"
    "--remap-path-prefix=$top=/src"
    "--remap-path-prefix=$target=/target"
)
flags=$(printf '%s\037' "${remap[@]}")
say "building $program $version for $host"
# The target is named so that build scripts and macros are not built with these flags.
CARGO_ENCODED_RUSTFLAGS=${flags%$'\037'} CFLAGS="-ffile-prefix-map=$cargo_home=/cargo -ffile-prefix-map=$target=/target" \
    cargo build --locked --quiet --release --target "$host" --target-dir "$target" --bin "$program"
cargo build --locked --quiet --example dist
release_tool() { cargo run --locked --quiet --example dist -- "$@"; }

name=$program-$version-$host
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
folder=$stage/$name
mkdir "$folder"
cp "$target/$host/release/$program" README.md CHANGELOG.md SECURITY.md LICENSE-APACHE LICENSE-MIT "$folder/"
cp -r docs "$folder/"
release_tool pages "$folder" "$(date --utc --date "@$SOURCE_DATE_EPOCH" +%F)"

# cargo-cyclonedx can write only next to Cargo.toml.
mkdir "$stage/source"
cp -r Cargo.toml Cargo.lock src deploy tests "$stage/source/"
(cd "$stage/source" && "${CYCLONEDX:-cargo-cyclonedx}" cyclonedx --quiet --format json --spec-version 1.5 --target "$host" \
    --override-filename all)
cargo tree --locked --edges normal,build --target "$host" --prefix none --format '{p}' |
    sed 's/^\([^ ]*\) v\([^ ]*\).*/\1@\2/' | sort -u >"$stage/tree"
release_tool sbom "$stage/source/all.json" "$stage/tree" | sed "s|file://$stage/source|file:///src|g" >"$folder/sbom.cdx.json"

# Checks the archive.
if [ "$("$folder/$program" --version)" != "$program $version" ]; then die "the built program does not run, or prints another version than Cargo.toml"; fi
if nm "$folder/$program" 2>/dev/null | grep -q .; then die "the built program is not stripped; check the release profile in Cargo.toml"; fi
for place in "$HOME" "$top" "$target" "$cargo_home" "$sysroot" "$stage"; do
    if grep -rqaF "$place/" "$folder"; then die "the archive contains a path of this machine: $place; add it to remap in this script"; fi
done

mkdir -p dist
tar -C "$stage" --format=gnu --sort=name --owner=0 --group=0 --numeric-owner --mode=u+rwX,go+rX,go-w \
    --mtime="@$SOURCE_DATE_EPOCH" -c "$name" | gzip -9n >"dist/$name.tar.gz"
"$(deploy/helm.sh)" package deploy/helm/wolkvox-task-worker --destination dist >&2
files=("$name.tar.gz" "$program-$version.tgz")
image=$program:$version
if command -v docker >/dev/null && present "$image"; then
    container=$(docker create "$image")
    docker cp --quiet "$container:/usr/share/doc/$program/sbom.cdx.json" "dist/$program-$version-image.sbom.cdx.json"
    docker rm "$container" >/dev/null
    docker save "$image" | gzip -9n >"dist/$program-$version-image.tar.gz"
    files+=("$program-$version-image.tar.gz" "$program-$version-image.sbom.cdx.json")
else
    say "there is no image $image on this machine, so it is not part of this release; \`make image\` builds it"
fi
cd dist
sha256sum "${files[@]}" >SHA256SUMS
stat --format '%s %n' "$name.tar.gz" "$folder/$program" |
    awk '{ sub(".*/", "", $2); printf "%s: %.1f MB\n", $2, $1 / 1e6 }' >&2
