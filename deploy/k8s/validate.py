#!/usr/bin/env python3
"""Checks manifests on standard input against Kubernetes' own schemas: `kubectl kustomize base | ./validate.py`.

Unknown fields and kinds without a schema are problems too. Prints the documents as a JSON array when all is well.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGE = "kubernetes-validate"
VERSION = "1.37.0"
# The oldest that knows every field we use, and the newest of the package.
KUBERNETES = ("1.27", "1.37")

TARGET = Path(os.environ.get("CARGO_TARGET_DIR") or Path(__file__).resolve().parents[2] / "target")
VENV = TARGET.absolute() / f"{PACKAGE}-{VERSION}-python{sys.version_info.major}.{sys.version_info.minor}"


def create_venv():
    """Moves a finished one into place, so that neither an interruption nor a second process leaves half of one."""
    TARGET.mkdir(parents=True, exist_ok=True)
    unfinished = tempfile.mkdtemp(prefix=f"{VENV.name}.", dir=TARGET)
    install = [f"{unfinished}/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"{PACKAGE}=={VERSION}"]
    try:
        for command in ([sys.executable, "-m", "venv", unfinished], install):
            # Standard input is the manifests', standard output the JSON's.
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr)
        os.rename(unfinished, VENV)
    except subprocess.CalledProcessError as error:
        sys.exit(f"{error}\ninstall Python's venv (Debian: python3-venv) and let pip reach its package index")
    except OSError:
        if not VENV.exists():
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def problem(document, kubernetes):
    from kubernetes_validate import utils

    try:
        utils.validate(document, kubernetes, strict=True)
    except utils.ValidationError as error:
        return f"{utils.kn(document)}: {'.'.join(map(str, error.path))}: {error.message}"
    except utils.SchemaNotFoundError as error:
        return error.message
    return None


def main():
    import yaml

    documents = [document for document in yaml.safe_load_all(sys.stdin) if document]
    problems = [
        f"Kubernetes {kubernetes}: {text}"
        for kubernetes in KUBERNETES
        for document in documents
        if (text := problem(document, kubernetes))
    ]
    if problems or not documents:
        sys.exit("\n".join(problems) or "no manifest on standard input")
    json.dump(documents, sys.stdout)


if "--in-venv" in sys.argv:
    main()
else:
    if not VENV.exists():
        create_venv()
    python = str(VENV / "bin/python")
    os.execv(python, [python, __file__, "--in-venv"])
