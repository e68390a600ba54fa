"""Secrets go where they belong and nowhere else: a whole gateway with canaries for all of them, in normal and in failing operation.

What the gateway is given (keys of providers, passwords, the webhook's path, …) and what clients send by mistake or as content
must stand in no log line at the level debug, no answer, no metric, no usage row, no span and on no page.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import asyncpg
import pytest
import yaml

from gateway.store.database import Database
from tests.acceptance.collector import Collector, running_collector
from tests.acceptance.scaled_out import redis_or_skip
from tests.acceptance.serving import ProviderThread, model
from tests.fake_provider import FakeProvider
from tests.farebox_process import FareboxProcess, Reply, running_farebox, tagged
from tests.ports import free_port
from tests.postgres_server import execute, with_database
from tests.redis_server import RedisServer
from tests.waiting import until

pytest_plugins = ["tests.store_fixtures"]
pytestmark = pytest.mark.xdist_group("acceptance-secrets")

# None looks like a secret, so it can be found by its value only.
PROVIDER = "canary-of-provider-1"
BY_LITELLM = "canary-of-litellm-2"
HEADER = "canary-of-extra-header-3"
ADMIN = "canary-of-admin-4"
HOOK = "canary-of-webhook-5"
REDIS = "canary-of-redis-6"
POSTGRES = "canary-of-postgres-7"
COLLECTOR = "canary-of-collector-8"
ENVIRONMENT = "canary-of-environment-9"
GIVEN = (PROVIDER, BY_LITELLM, HEADER, ADMIN, HOOK, REDIS, POSTGRES, COLLECTOR, ENVIRONMENT)
# What clients send: their credentials in every place where somebody puts one, and what they say to a model.
SENT = {place: f"canary-of-client-{place}" for place in (
    "bearer", "x-api-key", "cookie", "header", "query", "fragment", "prompt", "broken", "twice", "type", "field", "metadata", "user",
    "tool", "tag", "baggage", "form", "login", "address",
)}  # fmt: skip
# Errors repeat a misspelt name to the client that sent it.
REPEATED = ("tag", "address", "form")
PLACES = ("log", "answers", "metrics", "readiness", "rows", "spans", "pages", "starts")


@dataclass
class Outputs:
    """What was written in each place."""

    texts: dict[str, str] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    with redis_or_skip() as server:
        server.command("CONFIG", "SET", "requirepass", REDIS)
        yield server


@pytest.fixture(scope="module")
def store_url(postgres_server_url: str) -> Iterator[str]:
    """A migrated database whose owner has a password."""
    name = f"farebox_secrets_{uuid.uuid4().hex[:12]}"
    asyncio.run(execute(postgres_server_url, f"CREATE ROLE {name} LOGIN PASSWORD '{POSTGRES}'"))
    asyncio.run(execute(postgres_server_url, f"CREATE DATABASE {name} OWNER {name}"))
    server = urlsplit(with_database(postgres_server_url, name))
    url = server._replace(netloc=f"{name}:{POSTGRES}@{server.netloc.rpartition('@')[2]}").geturl()

    async def migrate() -> None:
        store = Database(url)
        await store.open()
        await store.migrate(time.time_ns() // 1_000_000)
        await store.close()

    asyncio.run(migrate())
    yield url
    asyncio.run(execute(postgres_server_url, f"DROP DATABASE {name} WITH (FORCE)", f"DROP ROLE {name}"))


@contextlib.contextmanager
def webhook() -> Iterator[tuple[str, list[str]]]:
    """A webhook that rejects everything, and records the requested paths."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            self.send_error(500)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/services/{HOOK}", asked
    server.shutdown()
    server.server_close()


def config_of(provider: FakeProvider, ledger: str, store: str, hook: str, collector: str) -> dict[str, Any]:
    def secret(name: str, key: str, url: str = provider.openai_url, **parameters: Any) -> dict[str, Any]:
        entry = model(url, name)
        entry["litellm_params"] |= {"api_key": key, **parameters}
        return entry

    return {
        "model_list": [
            secret("fake", PROVIDER, extra_headers={"x-token": HEADER}),
            {**secret("by-litellm", BY_LITELLM, extra_headers={"x-token": HEADER}), "upstream": "litellm"},
            secret("dead", PROVIDER, f"http://127.0.0.1:9/v1?key={PROVIDER}"),
            secret("no-address", PROVIDER, f"http://someone:{PROVIDER}@127.0.0.1:9/v1"),
            secret("teller", PROVIDER, model="openai/teller?status=500"),
        ],
        "router_settings": {"num_retries": 0, "connect_timeout": 1},
        "classifier": {"model": "teller"},
        "storage": {"ledger": ledger, "store": store},
        "server": {"log_format": "json", "log_level": "debug", "drain_seconds": 1},
        "alerts": {"webhook": hook, "private_networks": True, "budget_percent": [1]},
        "tracing": {"endpoint": collector, "headers": {"authorization": COLLECTOR}},
        "budgets": [
            {"scope": "run", "match": "*", "tokens": 2_000},
            {"scope": "workflow", "match": "told", "tokens": 10_000, "window": "day"},
        ],
        "settings": {"orchestration_enabled": True},
    }


ENVIRON = {"FAREBOX_ADMIN_KEY": ADMIN, "GROQ_API_KEY": ENVIRONMENT, "OTEL_BSP_SCHEDULE_DELAY": "100"}


class Actor:
    """Sends calls that succeed and calls that fail, and keeps every answer."""

    def __init__(self, gateway: FareboxProcess, outputs: Outputs) -> None:
        self._gateway = gateway
        self._outputs = outputs
        self._said: list[str] = []
        created = self.send("key", "POST", "/api/keys", {"name": "caller"}, as_admin=True, keep=False)
        self._key = str(created.json()["key"])
        outputs.keys.append(self._key)

    def send(
        self,
        purpose: str,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str | None] | None = None,
        *,
        as_admin: bool = False,
        keep: bool = True,
    ) -> Reply:
        credential = {"authorization": f"Bearer {ADMIN if as_admin else getattr(self, '_key', '')}"}
        sent_headers = {name: value for name, value in {**credential, **(headers or {})}.items() if value is not None}
        reply = self._gateway.request(method, path, body, sent_headers)
        while reply.status == 503 and purpose != "outage":  # on a busy machine Redis may be too slow for a moment
            time.sleep(0.2)
            reply = self._gateway.request(method, path, body, sent_headers)
        self._outputs.statuses[purpose] = reply.status
        if keep:  # a key is shown once, to whoever made it
            self._said.append(f"{purpose}: {reply.headers} {reply.body.decode(errors='replace')}")
        return reply

    def chat(
        self, purpose: str, name: str = "fake", headers: Mapping[str, str | None] | None = None, **fields: Any
    ) -> Reply:
        prompt = {"role": "user", "content": f"My word is {SENT['prompt']}."}
        body = {"model": name, "max_tokens": 16, "messages": [prompt], **fields}
        return self.send(purpose, "POST", "/v1/chat/completions", body, headers)

    @property
    def said(self) -> str:
        return "\n".join(self._said)


def make_successful_calls(act: Actor) -> None:
    for stream in (False, True):
        act.chat(f"stream={stream}", headers=tagged("told", "r-1", "s"), stream=stream)
    act.chat("litellm", "by-litellm", tagged("told", "r-1", "s"))
    act.chat("asked", headers=tagged("vague", "r-2", "work-on-it"), user=SENT["user"])
    act.chat("all-of-it", headers=tagged("told", "r-full", "s"), n=8, max_tokens=220)
    act.send(
        "explain",
        "POST",
        "/api/explain",
        {"model": "fake", "messages": [{"role": "user", "content": SENT["prompt"]}]},
        as_admin=True,
    )


def make_failing_calls(act: Actor, provider: FakeProvider) -> None:
    """The provider repeats the credentials that it was given, in every form of an error."""

    def script(**fields: Any) -> None:
        provider.script(when=lambda request: not request.model.startswith("teller"), **fields)

    for name, key in (("fake", PROVIDER), ("by-litellm", BY_LITELLM)):
        for body in ("json", "text", "string", "detail"):
            script(status=401, body=body, message=f"Incorrect API key {key} and token {HEADER} provided")
            act.chat(f"echo-{name}-{body}", name, tagged("told", "r-3", "s"))
        script(error_after=2, message=f"Key {key} with token {HEADER} was revoked")
        act.chat(f"echo-{name}-stream", name, tagged("told", "r-3", "s"), stream=True)
        script(reset="before_headers")
        act.chat(f"reset-{name}", name, tagged("told", "r-3", "s"))
        script(raw=f"NO/HTTP {key} {HEADER}\r\n\r\n")
        act.chat(f"garbage-{name}", name, tagged("told", "r-3", "s"))
    for name in ("dead", "no-address"):
        act.chat(name, name, tagged("told", "r-3", "s"))


def make_refused_calls(act: Actor) -> None:
    act.chat("budget", headers=tagged("told", "r-4", "s", options="no-clamp"), n=8, max_tokens=4_000)
    act.chat("model", "nobody", tagged("told", "r-4", "s"))
    act.chat("bearer", headers={"authorization": f"Bearer {SENT['bearer']}"})
    act.chat("x-api-key", headers={"authorization": None, "x-api-key": SENT["x-api-key"]})
    act.send("no-admin", "GET", "/api/keys")
    act.send("login", "POST", "/admin/login", f"name=root&password={SENT['login']}".encode(), {
        "content-type": "application/x-www-form-urlencoded", "sec-fetch-site": "same-origin"})  # fmt: skip


def make_invalid_calls(act: Actor) -> None:
    path, good = "/v1/chat/completions", {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
    act.chat("hidden", headers={"cookie": f"session={SENT['cookie']}", "x-secret": SENT["header"]})
    act.chat("baggage", headers={"baggage": f"secret={SENT['baggage']}", "traceparent": SENT["header"]})
    act.send("query", "POST", f"{path}?api_key={SENT['query']}&q={SENT['fragment']}", good)
    act.send("unknown-path", "GET", f"/v1/{SENT['address']}?token={SENT['query']}")
    act.send("odd-path", "GET", f"/v1//models/%2e?token={SENT['query']}")
    act.send("broken", "POST", path, f'{{"model": "fake", "api_key": "{SENT["broken"]}", '.encode())
    act.send("twice", "POST", path, f'{{"model": "{SENT["twice"]}", "model": "fake", "messages": []}}'.encode())
    act.send("type", "POST", path, {**good, "max_tokens": SENT["type"]})
    act.send("messages", "POST", path, {**good, "messages": SENT["type"]})
    act.send(
        "field", "POST", path, {**good, "api_key": SENT["field"], "api_base": f"https://{SENT['field']}@example.com"}
    )
    act.send("metadata", "POST", path, {**good, "metadata": {"secret": SENT["metadata"]}})
    act.send(
        "tool",
        "POST",
        path,
        {**good, "tools": [{"type": "function", "function": {"name": "f", "description": SENT["tool"]}}]},
    )
    act.send("tag", "POST", path, good, {"x-workflow-id": f"secret {SENT['tag']}"})
    act.send(
        "form", "POST", path, f"api_key={SENT['form']}".encode(), {"content-type": "application/x-www-form-urlencoded"}
    )
    act.send("setting", "PUT", "/api/settings/orchestration_enabled", {"value": SENT["form"]}, as_admin=True)
    act.send(
        "anthropic",
        "POST",
        "/v1/messages",
        {"model": "fake", "max_tokens": 16, "messages": [{"role": "user", "content": SENT["prompt"]}]},
    )


def stored_rows(url: str) -> str:
    async def read() -> str:
        connection = await asyncpg.connect(url)
        tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        rows = [repr(row) for (table,) in tables for row in await connection.fetch(f'SELECT * FROM "{table}"')]
        await connection.close()
        return "\n".join(rows)

    return asyncio.run(read())


def read_pages(act: Actor) -> str:
    pages = (
        "",
        "/runs",
        "/runs/r-3",
        "/keys",
        "/audit",
        "/settings",
        "/health",
        "/budgets?run=r-4",
        "/usage?group_by=model",
    )
    apis = ("/keys", "/audit", "/runs/r-3/calls", "/runs/r-4", "/usage", "/budgets", "/openapi.json")
    paths = (*(f"/admin{page}" for page in pages), *(f"/api{api}" for api in apis))
    return "\n".join(act.send(path, "GET", path, as_admin=True).body.decode() for path in paths)


def bad_starts(folder: Path, config: dict[str, Any]) -> str:
    """Output of starts with a wrong password, unreachable engines, or a faulty file."""
    # A port that nothing listens on: `doctor` would ask a gateway that runs.
    server = {**config["server"], "port": free_port()}
    config = {**config, "model_list": config["model_list"][:1], "classifier": {}, "server": server}
    store, port = config["storage"]["store"], urlsplit(config["storage"]["ledger"]).port
    wrong = {**config, "storage": {"ledger": f"redis://:{REDIS}x@127.0.0.1:{port}", "store": store}}
    away = {"ledger": f"redis://:{REDIS}@127.0.0.1:9", "store": f"postgresql://farebox:{POSTGRES}@127.0.0.1:9/farebox"}
    faults = {
        "storage": {"ledger": f"redis://:{REDIS}@:port/x", "store": f"postgres:{POSTGRES}"},
        "alerts": {"webhook": f"ftp://{HOOK}"},
    }
    tried = (
        (wrong, "serve", "invalid username-password pair"),
        ({**config, "storage": away}, "serve", "store cannot be reached"),
        ({**config, "storage": away}, "doctor", "cannot be reached"),
        ({**config, **faults}, "check", "must begin with one of"),
    )
    return "\n".join(_output(folder / f"start-{at}", *attempt) for at, attempt in enumerate(tried))


def _output(place: Path, config: dict[str, Any], command: str, awaited: str) -> str:
    """The command's output. A gateway that waits for an unreachable engine is stopped once the awaited text is there."""
    file, log = place.with_suffix(".yaml"), place.with_suffix(".log")
    file.write_text(yaml.safe_dump(config))
    arguments = [command, "--port", "0"] if command == "serve" else [command]
    with log.open("wb") as written:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "--config", str(file), *arguments],
            cwd=place.parent,
            env={**os.environ, **ENVIRON, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=written,
            stderr=written,
        )
    until(lambda: process.poll() is not None or awaited in log.read_text(), 40, f"{command}: {awaited}")
    process.terminate()
    process.wait(40)
    assert awaited in log.read_text()
    return log.read_text()


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer, store_url: str) -> Outputs:
    folder = tmp_path_factory.mktemp("secrets")
    gathered = Outputs()
    ledger = f"redis://:{quote(REDIS)}@127.0.0.1:{redis_server.port}"
    with ProviderThread() as provider, webhook() as (hook, asked), running_collector() as collector:
        config = config_of(provider, ledger, store_url, hook, collector.url)
        with running_farebox(folder, config, environment=ENVIRON) as gateway:
            act = Actor(gateway, gathered)
            make_successful_calls(act)
            make_failing_calls(act, provider)
            make_refused_calls(act)
            make_invalid_calls(act)
            gathered.texts["metrics"] = gateway.get("/metrics").body.decode()
            gathered.texts["readiness"] = gateway.get("/readyz?verbose").body.decode()
            until(lambda: bool(asked), 10, "the webhook")
            gathered.texts["pages"] = read_pages(act)
            redis_server.kill()
            act.chat("outage", headers=tagged("told", "r-5", "s"))
            until(lambda: gateway.get("/readyz").status == 503, 10, "the breaker")
            gathered.texts["readiness"] += gateway.get("/readyz?verbose").body.decode()
            redis_server.start()
            redis_server.command("CONFIG", "SET", "requirepass", REDIS)
            until(lambda: gateway.get("/readyz").status == 200, 20, "the ledger")
        gathered.texts |= {
            "answers": act.said,
            "log": gateway.log,
            "rows": stored_rows(store_url),
            "spans": b"\n".join(collector.raw).decode(errors="replace"),
            "starts": bad_starts(folder, config),
        }
        check_that_secrets_were_used(gathered, provider, asked, collector)
    return gathered


def check_that_secrets_were_used(
    outputs: Outputs, provider: FakeProvider, asked: list[str], collector: Collector
) -> None:
    """Checks that the secrets were there and in use; otherwise the test would prove nothing."""
    bearers = {received.headers.get("authorization") for received in provider.requests}
    assert bearers >= {f"Bearer {PROVIDER}", f"Bearer {BY_LITELLM}"}
    assert any(received.headers.get("x-token") == HEADER for received in provider.requests)
    assert asked[0].endswith(HOOK)
    assert collector.headers[0]["authorization"] == COLLECTOR
    by_status = {
        status: {purpose for purpose, status_of_purpose in outputs.statuses.items() if status_of_purpose == status}
        for status in outputs.statuses.values()
    }
    assert by_status[401] >= {
        "bearer",
        "x-api-key",
        "login",
        *(f"echo-fake-{body}" for body in ("json", "text", "string", "detail")),
    }
    assert by_status[502] == {
        "reset-fake",
        "garbage-fake",
        "reset-by-litellm",
        "garbage-by-litellm",
        "dead",
        "no-address",
    }
    assert (by_status[402], by_status[503]) == ({"budget"}, {"outage"})


@pytest.mark.parametrize("place", PLACES)
def test_secrets_appear_in_no_output(outputs: Outputs, place: str) -> None:
    output = outputs.texts[place]
    assert output
    secrets = [*GIVEN, *SENT.values(), *outputs.keys]
    if place == "answers":
        secrets = [secret for secret in secrets if secret not in {SENT[name] for name in REPEATED}]
    leaks = {secret: output[max(0, at - 200) : at + 100] for secret in secrets if (at := output.find(secret)) >= 0}
    assert not leaks
