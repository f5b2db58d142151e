#!/usr/bin/env python3
"""Checks manifests on standard input against Kubernetes' own schemas: `helm template … | ./validate.py [CRDS]`.

CRDS is a folder of custom resource definitions, for kinds that are not Kubernetes' own; where it is not there, those kinds are
named on standard error as not checked. Unknown fields and kinds without a schema are problems too, and so is what
fits the schemas and is refused all the same. Prints the documents as a JSON array when all is well.
"""

import functools
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

TARGET = Path(os.environ.get("CARGO_TARGET_DIR") or Path(__file__).resolve().parents[3] / "target")
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


def closed(schema):
    """A CRD's schema in the words of JSON Schema: what it does not know is pruned by Kubernetes, and a problem here."""
    schema = dict(schema)
    if schema.pop("nullable", False) and "type" in schema:
        schema["type"] = [schema["type"], "null"]
    if "properties" in schema:
        schema["properties"] = {name: closed(part) for name, part in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
    for word in ("items", "additionalProperties"):
        if isinstance(schema.get(word), dict):
            schema[word] = closed(schema[word])
    return schema


def custom_schemas(folder):
    """Schemas by API version and kind."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    definitions = [yaml.load(path.read_text(), loader) for path in sorted(folder.glob("*.yaml"))]
    return {
        (f"{definition['spec']['group']}/{version['name']}", definition["spec"]["names"]["kind"]):
            closed(version["schema"]["openAPIV3Schema"])
        for definition in definitions
        for version in definition["spec"]["versions"]
        if version["served"]
    }


def custom_problem(document, schema):
    import jsonschema

    for error in jsonschema.Draft4Validator(schema).iter_errors(document):
        return f"{name(document)}: {'.'.join(map(str, error.path))}: {error.message}"
    return None


def name(document):
    return f"{document['apiVersion']} {document['kind']} {document['metadata']['name']}"


def is_custom(document):
    """Kubernetes' own groups have no dot in them, or end in k8s.io."""
    group = document["apiVersion"].rpartition("/")[0]
    return "." in group and not group.endswith(".k8s.io")


def problem(document, kubernetes):
    from kubernetes_validate import utils

    try:
        utils.validate(document, kubernetes, strict=True)
    except utils.ValidationError as error:
        return f"{utils.kn(document)}: {'.'.join(map(str, error.path))}: {error.message}"
    except utils.SchemaNotFoundError as error:
        return error.message
    return None


def refused(document):
    """What Kubernetes' API server refuses although it fits the schemas."""
    spec = document.get("spec") or {}
    strategy = spec.get("strategy") or {}
    if document["kind"] == "Deployment" and strategy.get("type") == "Recreate" and "rollingUpdate" in strategy:
        yield f"{name(document)}: spec.strategy: rollingUpdate beside the type Recreate"
    pod = spec if document["kind"] == "Pod" else (spec.get("template") or {}).get("spec") or {}
    for volume in pod.get("volumes") or []:
        sources = sorted(volume.keys() - {"name"})
        if len(sources) > 1:
            yield f"{name(document)}: volume {volume['name']}: more than one source: {', '.join(sources)}"


def main():
    import yaml

    from kubernetes_validate import utils

    # It reads a schema of megabytes for each document.
    utils.schema_contents = functools.cache(utils.schema_contents)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    documents = [document for document in yaml.load_all(sys.stdin, loader) if document]
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    schemas = custom_schemas(folder) if folder and folder.is_dir() else {}
    custom = {True: [], False: []}
    for document in documents:
        custom[is_custom(document)].append(document)
    problems = [
        f"Kubernetes {kubernetes}: {text}"
        for kubernetes in KUBERNETES
        for document in custom[False]
        if (text := problem(document, kubernetes))
    ]
    for document in custom[False]:
        problems += refused(document)
    for document in custom[True]:
        schema = schemas.get((document["apiVersion"], document["kind"]))
        if schema:
            problems += filter(None, [custom_problem(document, schema)])
        elif folder and not folder.is_dir():
            print(f"not checked, for there is no {folder}: {name(document)}", file=sys.stderr)
        else:
            problems.append(f"{name(document)}: no schema")
    if problems or not documents:
        sys.exit("\n".join(problems) or "no manifest on standard input")
    json.dump(documents, sys.stdout)


if sys.argv[1:2] == ["--in-venv"]:
    main()
else:
    if not VENV.exists():
        create_venv()
    python = str(VENV / "bin/python")
    os.execv(python, [python, __file__, "--in-venv", *sys.argv[1:]])
