"""The Helm chart, rendered by Helm itself and checked against the schemas of Kubernetes. No cluster runs here."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.cli.configuration import read_config
from tests.chart_tools import CHART, HELM, ROOT, helm, schema_faults
from tests.docs.fences import blocks

pytestmark = [
    pytest.mark.xdist_group("helm"),
    pytest.mark.skipif(not HELM.exists(), reason="Helm is not in .venv-chart: `make test` gets it"),
]

MINIMAL: dict[str, Any] = {
    "adminKey": "an-admin-key-of-some-length",
    "storage": {
        "ledger": "redis://:secret@redis:6379/0",
        "store": "postgresql://farebox:secret@postgres:5432/farebox",
    },
}
EVERYTHING: dict[str, Any] = {
    **MINIMAL,
    "workers": 2,
    "config": {
        "model_list": [{"model_name": "mock", "litellm_params": {"model": "openai/mock", "mock_response": "Yes."}}],
        "budgets": [{"scope": "run", "match": "*", "tokens": 20000, "usd": 0.5}],
    },
    "providerKeySecrets": ["providers"],
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
    "image": {"repository": "registry.example/farebox", "tag": "0.1.0", "pullSecrets": [{"name": "registry"}]},
    "autoscaling": {"enabled": True},
    "serviceMonitor": {
        "enabled": True,
        "labels": {"release": "prometheus"},
        "authorization": {"credentials": {"name": "scraping", "key": "farebox"}},
    },
    "ingress": {"enabled": True, "className": "nginx", "tlsSecret": "farebox-tls"},
    "spool": {"storageClass": "fast"},
    "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/farebox"}},
    "podAnnotations": {"note": "a"},
    "tolerations": [{"key": "spot", "operator": "Exists"}],
    "nodeSelector": {"disk": "ssd"},
    "priorityClassName": "high",
}
EMBEDDED: dict[str, Any] = {"adminKey": MINIMAL["adminKey"], "replicas": 1, "storage": {"mode": "embedded"}}
WITH_SECRET: dict[str, Any] = {"storage": {"existingSecret": "farebox-secrets"}}
SETS = {"minimal": MINIMAL, "everything": EVERYTHING, "embedded": EMBEDDED, "existing secret": WITH_SECRET}
# The oldest that the chart says it runs on, and the newest that Helm here knows.
VERSIONS = ["1.27.0", "1.35.0"]


@functools.cache
def rendered(name: str) -> tuple[dict[str, Any], ...]:
    return render(SETS[name])


def render(values: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    done = helm("template", "farebox", str(CHART), values=values)
    assert done.returncode == 0, done.stderr
    return tuple(document for document in yaml.safe_load_all(done.stdout) if document)


def document_of(documents: tuple[dict[str, Any], ...], kind: str, suffix: str = "") -> dict[str, Any]:
    (document,) = (
        item for item in documents if item["kind"] == kind and item["metadata"]["name"].endswith(f"farebox{suffix}")
    )
    return document


def container(document: dict[str, Any]) -> dict[str, Any]:
    (container_spec,) = document["spec"]["template"]["spec"]["containers"]
    return dict(container_spec)


def variables(document: dict[str, Any], secrets: dict[str, str]) -> dict[str, str]:
    """What the container is given, with a Secret's values put in."""
    return {
        variable["name"]: variable["value"]
        if "value" in variable
        else secrets[variable["valueFrom"]["secretKeyRef"]["key"]]
        for variable in container(document)["env"]
    }


@pytest.mark.parametrize("name", SETS)
def test_helm_lint_reports_no_warning(name: str) -> None:
    done = helm("lint", "--strict", str(CHART), values=SETS[name])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout


def test_rendered_documents_are_valid_and_an_unknown_field_is_noticed() -> None:
    wrong = json.loads(json.dumps(document_of(rendered("minimal"), "StatefulSet")))
    wrong["metadata"]["name"] = "slip"
    wrong["spec"]["template"]["spec"]["container"] = []
    all_of_them = [item for name in SETS for item in rendered(name)]
    documents = [item for item in all_of_them if "monitoring.coreos.com" not in item["apiVersion"]]
    faults = schema_faults([wrong, *documents], VERSIONS)
    assert [fault.partition(": ")[0] for fault in faults] == [
        f"StatefulSet slip as of {version}" for version in VERSIONS
    ]


def test_documented_values_render() -> None:
    (shown,) = (block for block in blocks(ROOT / "docs/deployment.md") if "values" in block.notes)
    documents = render(yaml.safe_load(shown.text))
    kinds = {item["kind"] for item in documents}
    assert {"StatefulSet", "Job", "HorizontalPodAutoscaler", "ServiceMonitor", "PodDisruptionBudget"} <= kinds
    assert "Secret" not in kinds


def test_unsafe_or_unusable_values_do_not_render() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({}, "set storage.ledger"),
        ({"storage": MINIMAL["storage"]}, "set adminKey"),
        ({**MINIMAL, "adminKey": "short"}, "adminKey"),
        ({**EMBEDDED, "replicas": 2}, "SQLite, which belongs to one process"),
        ({**EMBEDDED, "autoscaling": {"enabled": True}}, "SQLite, which belongs to one process"),
        ({**MINIMAL, "storage": {**MINIMAL["storage"], "ledger": "sqlite:///ledger.db"}}, "ledger"),
        ({**MINIMAL, "config": {"storage": {"ledger": "redis://elsewhere"}}}, "config"),
        ({**MINIMAL, "autoscaling": {"enabled": True, "min": 3, "max": 2}}, "autoscaling.min is above"),
        ({**MINIMAL, "replica": 3}, "replica"),
    ]
    for values, message in wrong:
        done = helm("template", "farebox", str(CHART), values=values)
        assert done.returncode != 0, values
        assert message in done.stderr, done.stderr


def test_gateway_reads_the_rendered_variables_and_configuration(tmp_path: Path) -> None:
    documents = rendered("everything")
    secrets = document_of(documents, "Secret")["stringData"]
    environment = variables(document_of(documents, "StatefulSet"), secrets)
    (tmp_path / "config.yaml").write_text(document_of(documents, "ConfigMap")["data"]["config.yaml"])
    config = read_config(tmp_path / "config.yaml", environment)
    assert config.storage.ledger == MINIMAL["storage"]["ledger"]
    assert config.storage.store == MINIMAL["storage"]["store"]
    assert config.storage.spool == "/data/spool"
    assert (config.server.host, config.server.port, config.server.workers) == ("0.0.0.0", 4000, 2)
    assert config.server.log_format == "json"
    assert config.model_list[0].model_name == "mock"
    assert config.budgets[0].usd == 500_000_000
    known = {f"FAREBOX_SERVER_{field.upper()}" for field in type(config.server).model_fields}
    known |= {f"FAREBOX_STORAGE_{field.upper()}" for field in type(config.storage).model_fields}
    ours = {name for name in environment if name.startswith("FAREBOX_")}
    assert ours - known == {"FAREBOX_CONFIG", "FAREBOX_ADMIN_KEY"}
    embedded = read_config(None, variables(document_of(rendered("embedded"), "StatefulSet"), {"admin-key": "k" * 16}))
    assert embedded.storage.ledger == "sqlite:////data/ledger.db"
    assert embedded.server.workers == 1


@pytest.mark.parametrize("name", SETS)
def test_pods_run_as_non_root_with_a_read_only_file_system(name: str) -> None:
    pods = [item for item in rendered(name) if item["kind"] in ("StatefulSet", "Job")]
    assert len(pods) == (1 if name == "embedded" else 2)
    for item in pods:
        pod = item["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        inside = container(item)
        assert inside["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        writable = {mount["mountPath"] for mount in inside["volumeMounts"] if not mount.get("readOnly")}
        assert writable <= {"/data", "/tmp"}
        assert inside["resources"]["requests"]
        assert "cpu" not in inside["resources"]["limits"]


def test_migration_job_runs_before_install_and_upgrade() -> None:
    documents = rendered("minimal")
    job = document_of(documents, "Job", "-migrate")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    assert container(job)["args"] == ["migrate"]
    secret = document_of(documents, "Secret", "-migrate")
    assert secret["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    weights = [int(item["metadata"]["annotations"]["helm.sh/hook-weight"]) for item in (secret, job)]
    assert weights[0] < weights[1], "the job reads the secret"
    environment = variables(job, secret["stringData"])
    assert environment["FAREBOX_STORAGE_STORE"] == MINIMAL["storage"]["store"]
    assert "serviceAccountName" not in job["spec"]["template"]["spec"], "the release's own does not exist yet"
    own = rendered("existing secret")
    assert [item["metadata"]["name"] for item in own if item["kind"] == "Secret"] == []
    assert (
        container(document_of(own, "Job", "-migrate"))["env"][0]["valueFrom"]["secretKeyRef"]["name"]
        == "farebox-secrets"
    )


def test_changed_configuration_or_secret_changes_the_pod_checksums() -> None:
    def checksums(values: dict[str, Any]) -> dict[str, str]:
        return dict(document_of(render(values), "StatefulSet")["spec"]["template"]["metadata"]["annotations"])

    before = checksums(MINIMAL)
    assert checksums(MINIMAL) == before
    other = checksums({**MINIMAL, "config": EVERYTHING["config"]})
    assert other["checksum/config"] != before["checksum/config"]
    rotated = checksums({**MINIMAL, "adminKey": "another-admin-key-of-some-length"})
    assert rotated["checksum/secret"] != before["checksum/secret"]
    assert rotated["checksum/config"] == before["checksum/config"]


def test_termination_grace_period_covers_the_drain_time() -> None:
    gateway = document_of(render({**MINIMAL, "server": {"drainSeconds": 120}}), "StatefulSet")
    assert gateway["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 140
    assert container(gateway)["lifecycle"]["preStop"] == {"exec": {"command": ["sleep", "5"]}}
    assert variables(gateway, {"ledger": "", "store": "", "admin-key": ""})["FAREBOX_SERVER_DRAIN_SECONDS"] == "120"


def test_request_bodies_fit_into_the_memory_limit_of_a_pod() -> None:
    inside = container(gateway := document_of(rendered("minimal"), "StatefulSet"))
    bodies = int(variables(gateway, {"ledger": "", "store": "", "admin-key": ""})["FAREBOX_SERVER_BODIES_BYTES_MAX"])
    assert inside["resources"]["limits"]["memory"] == "1Gi"
    # A call holds two and a half times its body; one that is killed for it is charged with all that the others held.
    assert 200_000_000 + 2.5 * bodies < 2**30


def test_selectors_match_the_gateways_and_not_the_migration_job() -> None:
    documents = rendered("everything")
    labels = document_of(documents, "StatefulSet")["spec"]["template"]["metadata"]["labels"]
    of_job = document_of(documents, "Job", "-migrate")["spec"]["template"]["metadata"]["labels"]
    service = document_of(documents, "Service")
    selectors = [
        document_of(documents, "StatefulSet")["spec"]["selector"]["matchLabels"],
        document_of(documents, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        document_of(documents, "Service", "-each")["spec"]["selector"],
    ]
    for selector in selectors:
        assert selector.items() <= labels.items()
        assert not selector.items() <= of_job.items()
    monitored = document_of(documents, "ServiceMonitor")["spec"]
    assert monitored["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert service["metadata"]["labels"][monitored["jobLabel"]] == "farebox", "rules.yml asks for this job"
    each = document_of(documents, "Service", "-each")["metadata"]["labels"]
    assert not monitored["selector"]["matchLabels"].items() <= each.items(), "each gateway would be scraped twice"
    secret = {"credentials": {"name": "scraping", "key": "farebox"}}
    assert monitored["endpoints"] == [{"port": "http", "path": "/metrics", "interval": "15s", "authorization": secret}]
    assert service["spec"]["ports"][0]["name"] == "http"
    assert document_of(documents, "ServiceMonitor")["metadata"]["labels"]["release"] == "prometheus"


def test_autoscaler_replaces_the_replica_count() -> None:
    documents = rendered("everything")
    target = document_of(documents, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    gateway = document_of(documents, "StatefulSet")
    assert (target["kind"], target["name"]) == (gateway["kind"], gateway["metadata"]["name"])
    assert "replicas" not in gateway["spec"]
    assert document_of(rendered("minimal"), "StatefulSet")["spec"]["replicas"] == 2


def test_probes_and_ingress_paths_are_those_of_the_gateway() -> None:
    documents = rendered("everything")
    inside = container(document_of(documents, "StatefulSet"))
    probes = {name: inside[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert probes == {"startupProbe": "/readyz", "livenessProbe": "/livez", "readinessProbe": "/livez"}
    (rule,) = document_of(documents, "Ingress")["spec"]["rules"]
    assert [path["path"] for path in rule["http"]["paths"]] == ["/v1", "/w", "/api", "/admin"]


def test_chart_and_package_have_the_same_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert project is not None
    assert chart["version"] == chart["appVersion"] == project[1]


def test_values_schema_has_every_value() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(values) == set(schema["properties"]) - {"global"}
    for name, part in values.items():
        inside = schema["properties"][name].get("properties")
        if inside is not None:
            assert set(part) == set(inside), name


_READ_ONLY = """
mkdir "$1/tmp" && mount --bind "$1" /mnt && mount -o remount,ro,bind / && cd /mnt || exit 77
if touch /x 2>/dev/null || touch /tmp/x 2>/dev/null; then exit 77; fi
exec timeout -s TERM -k 30 60 "$2" -m gateway serve --port 0
"""


def test_gateway_runs_with_only_the_charts_writable_folders(tmp_path: Path) -> None:
    """The real one, on a file system that is read-only but for its data and temporary folders, from start to stop."""
    environment = variables(
        document_of(rendered("embedded"), "StatefulSet"), {"admin-key": "an-admin-key-of-some-length"}
    )
    moved = {name: value.replace("/data", "/mnt") for name, value in environment.items() if name != "FAREBOX_CONFIG"}
    with subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", _READ_ONLY, "sh", str(tmp_path), sys.executable],
        stderr=subprocess.PIPE,
        text=True,
        env={
            **moved,
            "FAREBOX_SERVER_HOST": "127.0.0.1",
            "HOME": "/mnt/tmp",
            "TMPDIR": "/mnt/tmp",
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
    ) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "Farebox listens on" in line:
                process.terminate()
        code = process.wait(60)
    if "Farebox listens on" not in "".join(lines) and (code == 77 or "unshare" in "".join(lines)):
        pytest.skip("no mount namespace of one's own is allowed here")
    assert code in (0, 124), "".join(lines)
    assert (tmp_path / "ledger.db").exists(), "".join(lines)
    assert (tmp_path / "store.db").exists()
