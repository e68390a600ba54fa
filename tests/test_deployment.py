"""What is shipped to run Farebox with: each file is held to what it names, because no container engine runs here."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from gateway.cli.configuration import read_config
from gateway.endpoints.access import ADMIN_KEY_CHARACTERS_MIN
from gateway.endpoints.health import health_routes
from gateway.ledger.redis import RedisLedger
from gateway.observability.telemetry import Telemetry
from tests.acceptance.scaled_out import settings_for
from tests.farebox_process import running_farebox
from tests.redis_server import RedisServer

ROOT = Path(__file__).parents[1]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
GATEWAYS = ["gateway-1", "gateway-2"]
COMPOSE_SCHEMA = json.loads((ROOT / "tests/compose_spec/schema.json").read_text())
RULES_TEST = ROOT / "tests/prometheus/rules_test.yml"
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="needs promtool, which comes with Prometheus")
_METRIC = re.compile(r"\bfarebox_[a-z_]+")
_VARIABLE = re.compile(r"\$\{(\w+)")


def metric_names() -> set[str]:
    """As they are written in a query: counters with _total, histograms with their three series."""
    names = set()
    for metric in Telemetry().registry.collect():
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(metric.type, [""])
        names |= {metric.name + suffix for suffix in suffixes}
    return names


def expressions() -> Iterator[tuple[str, str]]:
    dashboard = json.loads((ROOT / "deploy/grafana/farebox.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for group in yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())["groups"]:
        for rule in group["rules"]:
            assert rule["annotations"]["summary"]
            yield rule["alert"], rule["expr"]


@pytest.mark.parametrize(("title", "expression"), list(expressions()))
def test_every_dashboard_and_alert_query_uses_existing_metrics(title: str, expression: str) -> None:
    asked = set(_METRIC.findall(expression))
    assert asked <= metric_names(), f"{title}: {asked - metric_names()}"
    assert asked or "up{" in expression
    assert expression.count("(") == expression.count(")")


def promtool(*arguments: str, given: bytes = b"") -> None:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *arguments], input=given, capture_output=True)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()


@needs_promtool
def test_alerts_fire_for_the_series_that_they_are_about_and_for_no_others() -> None:
    promtool("test", "rules", str(RULES_TEST))


@needs_promtool
def test_prometheus_accepts_its_configuration_and_the_metrics() -> None:
    promtool("check", "config", str(ROOT / "deploy/prometheus/prometheus.yml"))
    promtool("check", "metrics", given=Telemetry().exposition())


@needs_promtool
def test_dashboard_queries_are_valid(tmp_path: Path) -> None:
    queries = dict(enumerate(expression.replace("$__rate_interval", "1m") for _, expression in expressions()))
    recorded = [{"record": f"query_{number}", "expr": query} for number, query in queries.items()]
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}))
    promtool("check", "rules", str(tmp_path / "queries.yml"))


def test_every_alert_is_evaluated_by_a_test() -> None:
    rules = yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())["groups"][0]["rules"]
    cases = [
        case for group in yaml.safe_load(RULES_TEST.read_text())["tests"] for case in group.get("alert_rule_test", ())
    ]
    assert {rule["alert"] for rule in rules} == {case["alertname"] for case in cases if case["exp_alerts"]}


def test_every_alert_is_explained() -> None:
    page = (ROOT / "docs/runbooks.md").read_text()
    rules = yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())["groups"][0]["rules"]
    assert [rule["alert"] for rule in rules if f"`{rule['alert']}`" not in page] == []


def test_every_metric_is_used_by_a_dashboard_or_an_alert() -> None:
    asked = {name for _, expression in expressions() for name in _METRIC.findall(expression)}
    series = {re.sub(r"_(bucket|sum|count)$", "", name) for name in metric_names()}
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
    assert series - shown == set()


def test_every_metric_is_documented() -> None:
    page = (ROOT / "docs/observability.md").read_text()
    table = page[page.index("## Metrics") : page.index("## Spans")]
    # Several of one family share a line, where only their endings differ.
    for name in {re.sub(r"_(bucket|sum|count)$", "", metric) for metric in metric_names()}:
        ending = re.sub(r"^farebox_budget", "", name)
        assert f"`{name}`" in table or f"`{ending}`" in table, name


def faults_of(compose: Any) -> list[str]:
    """What is wrong by the schema of the Compose Specification."""
    errors = jsonschema.Draft202012Validator(COMPOSE_SCHEMA).iter_errors(compose)
    return [f"{'/'.join(map(str, fault.absolute_path))}: {fault.message}" for fault in errors]


def test_compose_file_is_valid_by_the_specification() -> None:
    assert faults_of(COMPOSE) == []
    slip = copy.deepcopy(COMPOSE)
    slip["services"]["redis"]["restarts"] = slip["services"]["redis"].pop("restart")
    slip["services"]["caddy"]["depends_on"]["gateway-1"]["condition"] = "service_ready"
    assert {fault.split(":")[0] for fault in faults_of(slip)} >= {"services/redis", "services/caddy/depends_on"}


def test_compose_images_have_versions_and_networks_exist() -> None:
    for name, service in SERVICES.items():
        assert service.get("build") or re.search(r":[\w.-]*\d", service["image"]), f"{name}: an image without a version"
        for network in service["networks"]:
            assert network in COMPOSE["networks"], name


def test_compose_services_wait_for_healthy_or_completed_dependencies() -> None:
    for name, service in SERVICES.items():
        for needed, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                test = SERVICES[needed].get("healthcheck", {}).get("test")
                # Gateways have theirs in the image.
                assert test or needed in GATEWAYS, f"{name} waits for {needed}, which has no health check"
            else:
                assert SERVICES[needed]["restart"] == "no"
    assert "HEALTHCHECK" in (ROOT / "Dockerfile").read_text()


def test_compose_asks_postgres_over_tcp() -> None:
    # The image's server listens on the Unix socket alone while it makes the database, and then restarts.
    assert "-h 127.0.0.1" in SERVICES["postgres"]["healthcheck"]["test"][1]


def test_compose_volumes_are_declared_and_files_exist() -> None:
    for name, service in SERVICES.items():
        for volume in service.get("volumes", ()):
            source = re.sub(r"\$\{\w+:-(.*?)\}", r"\1", volume).split(":")[0]
            assert source in COMPOSE["volumes"] or (ROOT / source).is_file(), f"{name}: {source}"


def test_compose_gateways_differ_only_in_their_spool() -> None:
    first, second = (dict(SERVICES[name]) for name in GATEWAYS)
    volumes = [first.pop("volumes"), second.pop("volumes")]
    assert first == second
    assert volumes[0][0] == volumes[1][0]
    assert volumes[0][1] != volumes[1][1]
    assert first["read_only"] is True


def test_env_example_has_every_compose_variable() -> None:
    asked = set(_VARIABLE.findall((ROOT / "docker-compose.yml").read_text()))
    documented = {line.partition("=")[0] for line in (ROOT / ".env.example").read_text().splitlines() if "=" in line}
    documented = {name for name in documented if re.fullmatch(r"[A-Z_]+", name)}
    assert asked == documented


def test_compose_variables_configure_the_gateway() -> None:
    variables = {
        name: re.sub(r"\$\{.*?\}", "secret", value) for name, value in SERVICES["gateway-1"]["environment"].items()
    }
    config = read_config(ROOT / "config.example.yaml", variables)
    assert config.storage.ledger == "redis://:secret@redis:6379/0"
    assert config.storage.store == "postgresql://farebox:secret@postgres:5432/farebox"
    assert config.storage.spool == "/var/lib/farebox/spool"
    assert config.server.host == "0.0.0.0"


async def test_redis_with_the_compose_options_opens_without_warnings() -> None:
    options = [re.sub(r"\$\{\w+(:-(\w+)|:\?.*?)\}", r"\2", word) for word in SERVICES["redis"]["command"][1:]]
    assert options[-2] == "--requirepass"
    try:
        server = RedisServer(*options[:-2])
        server.start()
    except FileNotFoundError as lacking:
        pytest.skip(str(lacking))
    ledger = RedisLedger(server.url, deadline_ms=10_000)
    try:
        await ledger.open()
        assert ledger.warnings == ()
    finally:
        await ledger.close()
        server.remove()


def test_make_env_writes_secrets_once_with_mode_600(tmp_path: Path) -> None:
    target = tmp_path / ".env"
    script = subprocess.run([ROOT / "deploy/make-env.sh", target], capture_output=True, text=True, check=True)
    assert str(target) in script.stdout
    values = dict(line.split("=", 1) for line in target.read_text().splitlines() if "=" in line and line[0] != "#")
    secrets = [values[name] for name in ("FAREBOX_ADMIN_KEY", "POSTGRES_PASSWORD", "REDIS_PASSWORD")]
    assert len(set(secrets)) == 3
    # They stand in URLs, so nothing in them may need an escape.
    assert all(re.fullmatch(r"[0-9a-f]{48}", secret) for secret in secrets)
    assert stat.S_IMODE(os.stat(target).st_mode) == 0o600
    again = subprocess.run([ROOT / "deploy/make-env.sh", target], capture_output=True, text=True, check=False)
    assert again.returncode == 1


def test_dockerfile_copies_existing_files_and_runs_as_a_numeric_user() -> None:
    text = (ROOT / "Dockerfile").read_text()
    allowed = (ROOT / ".dockerignore").read_text()
    for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in allowed, f"{source} is kept out by .dockerignore"
    assert re.search(r"^USER 10001:10001$", text, re.MULTILINE)
    assert text.index("USER 10001") > text.rindex("FROM ")
    assert text.count("--require-hashes") == 2


def test_image_health_check_follows_the_port_and_uses_no_proxy(tmp_path: Path) -> None:
    (check,) = re.findall(r"^HEALTHCHECK .*\n +CMD (\[.+\])$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    python, *arguments = json.loads(check)
    assert python == "python"
    # Docker puts the proxy of its own configuration into every container's environment.
    nowhere = "http://127.0.0.1:9"
    with running_farebox(tmp_path, settings_for("sqlite:///ledger.db", "sqlite:///store.db")) as gateway:
        port = gateway.url.rpartition(":")[2]
        environment = {**os.environ, "HTTP_PROXY": nowhere, "http_proxy": nowhere, "FAREBOX_SERVER_PORT": port}
        command = [sys.executable, *arguments]
        assert subprocess.run(command, env=environment).returncode == 0
        gateway.stop()
        assert subprocess.run(command, env=environment, capture_output=True).returncode == 1


def test_files_copied_into_the_image_build_the_package(tmp_path: Path) -> None:
    """The context that .dockerignore lets through and the Dockerfile copies, built by the backend that pip asks there."""
    copied = re.findall(r"^COPY (?!--from)(.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    for line in copied:
        *sources, target = line.split()
        for source in sources:
            into = tmp_path / (
                target if (ROOT / source).is_dir() else f"{target.removesuffix('/')}/{Path(source).name}"
            )
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, into, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                into.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, into)
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "dist").glob("farebox-*.whl")
    assert "gateway/app.py" in zipfile.ZipFile(wheel).namelist()


def braces_match(text: str) -> bool:
    return text.count("{") == text.count("}")


def test_load_balancers_have_both_gateways_and_do_not_buffer() -> None:
    caddy, nginx = ((ROOT / "deploy" / name).read_text() for name in ("Caddyfile", "nginx.conf"))
    for gateway in GATEWAYS:
        assert f"{gateway}:4000" in caddy
        assert f"server {gateway}:4000" in nginx
    assert braces_match(caddy)
    assert braces_match(nginx)
    assert "flush_interval -1" in caddy
    assert "health_uri /livez" in caddy, "where /readyz takes out all gateways, what needs no ledger fails too"
    assert "underscores_in_headers on;" in nginx
    assert "proxy_buffering off;" in nginx
    assert "non_idempotent" not in nginx, "a call that was sent may have been paid for: it must not be sent twice"


def test_load_balancers_do_not_expose_health_endpoints() -> None:
    caddy, nginx = ((ROOT / "deploy" / name).read_text() for name in ("Caddyfile", "nginx.conf"))
    patterns = re.findall(r"@internal path (.+)", caddy)[0].split()
    (location,) = re.findall(r"location ~ (\S+) \{\s+return 404;", nginx)
    for route in health_routes(None, None, None):  # type: ignore[arg-type]  # they are not asked
        assert any(fnmatch(route.path, pattern) for pattern in patterns), route.path
        assert re.search(location, route.path), route.path


def test_systemd_and_compose_stop_timeouts_cover_the_drain_time() -> None:
    unit = (ROOT / "deploy/systemd/farebox.service").read_text()
    stop_s = int(re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)[0])
    drain_s = read_config(ROOT / "config.example.yaml", {}).server.drain_seconds
    # And the flusher's five seconds.
    assert stop_s >= drain_s + 5
    assert int(SERVICES["gateway-1"]["stop_grace_period"].removesuffix("s")) >= drain_s + 5
    assert "NoNewPrivileges=yes" in unit
    assert "ProtectSystem=strict" in unit


def test_systemd_accepts_every_line_of_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze")
    unit = (ROOT / "deploy/systemd/farebox.service").read_text()
    (tmp_path / "farebox.service").write_text(unit.replace("/opt/farebox/bin/farebox", sys.executable))
    verified = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / "farebox.service"], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stderr) == (0, "")


def test_chart_requires_the_same_admin_key_length_as_the_gateway() -> None:
    schema = json.loads((ROOT / "deploy/helm/farebox/values.schema.json").read_text())
    pattern = re.compile(schema["properties"]["adminKey"]["pattern"])
    taken = [length for length in range(1, 64) if pattern.search("k" * length)]
    assert taken == list(range(ADMIN_KEY_CHARACTERS_MIN, 64))
    assert pattern.search(""), "the key may be in a secret of the cluster"
