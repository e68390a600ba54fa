"""What a call may cost, in counts instead of times: a time depends on the machine, a count is the same everywhere.

Each number is an upper bound that held when it was written. To tighten one, run

    pytest tests/acceptance/test_work_per_call.py -s

which prints what was counted, and lower the bound to that. A bound that has to be raised needs a reason in the commit.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar, TypeVarTuple

import orjson
import pytest

import gateway
import policies
from gateway.app import Application
from gateway.ledger.redis import RedisLedger
from gateway.ledger.sqlite import SqliteLedger
from gateway.ledger.sqlite_file import SqliteFile
from gateway.server.guard import Guard
from tests.acceptance.in_process import CONFIG, INTENTS, TAGS, ask, running_application
from tests.acceptance.serving import ProviderThread
from tests.bare_server import bare_server
from tests.fake_provider import FakeProvider
from tests.redis_server import RedisServer, running_server

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")
CALLS = 20
OUR_CODE = (*gateway.__path__, *policies.__path__)
# What a call waits for. Renewing, sweeping and moving the outbox are done for many calls at once, in the background.
ON_THE_PATH = ("reserve", "extend", "settle", "void", "balances", "current_run", "pending")
# Not needed by a gateway with a SQLite ledger and store whose models take the direct lane. Each costs a start 2 MB or more, and up to 9 s.
NOT_AT_START = (
    "litellm",
    "httpx",
    "openai",
    "asyncpg",
    "aiosqlite",
    "alembic",
    "pygments",
    "aiohttp",
    "hiredis",
    "argon2",
    "greenlet",
    "jinja2",
    "opentelemetry",
    "sqlalchemy.dialects.postgresql",
    "sqlalchemy.ext.asyncio",
    "sqlalchemy.orm",
    "gateway.admin",
    "gateway.endpoints.api",
    "gateway.ledger.redis",
    "policies.compression",
)


class Work:
    """Counts while `is_counting`. Background work is included, because it is part of what calls cost."""

    def __init__(self) -> None:
        self.is_counting = False
        self.counts: Counter[str] = Counter()
        self.bodies: set[bytes] = set()

    def add(self, unit_of_work: str, amount: int = 1) -> None:
        if self.is_counting:
            self.counts[unit_of_work] += amount

    def per_call(self, unit_of_work: str) -> float:
        return self.counts[unit_of_work] / CALLS


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    """Hooks into the ledgers, the SQLite file, orjson and the event loop."""
    work = Work()
    for engine in (SqliteLedger, RedisLedger):
        for name in ON_THE_PATH:
            monkeypatch.setattr(engine, name, _counted(work, "ledger", getattr(engine, name)))
    opened = SqliteFile.__init__

    def open_traced(file: SqliteFile, *arguments: Any) -> None:
        opened(file, *arguments)
        file.connection.set_trace_callback(lambda statement: _statement(work, statement))

    monkeypatch.setattr(SqliteFile, "__init__", open_traced)
    monkeypatch.setattr(orjson, "loads", _counted_loads(work, orjson.loads))
    return work


def _counted(work: Work, unit_of_work: str, method: Any) -> Any:
    def call(*arguments: Any, **named: Any) -> Any:
        work.add(unit_of_work)
        return method(*arguments, **named)

    return call


def _statement(work: Work, statement: str) -> None:
    work.add("statements")
    if statement.startswith("COMMIT"):
        work.add("commits")


def _counted_loads(work: Work, loads: Any) -> Any:
    def count(value: Any) -> Any:
        if value in work.bodies:
            work.add("body parsed")
        work.add("json bytes", len(value))
        return loads(value)

    return count


def _watch_loop(work: Work) -> None:
    loop = asyncio.get_running_loop()
    once, execute = loop._run_once, loop.run_in_executor  # type: ignore[attr-defined]

    def counted_once() -> None:
        work.add("loop turns")
        once()

    def counted_execute(
        executor: Executor | None, func: Callable[[*Arguments], Result], *arguments: *Arguments
    ) -> asyncio.Future[Result]:
        # Events are moved to the store at intervals, in nine executor calls for all of them: how often depends on the machine.
        if getattr(executor, "_thread_name_prefix", "") != "store":
            work.add("threads")
        return execute(executor, func, *arguments)

    def make_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **named: Any) -> asyncio.Task[Any]:
        work.add("tasks")
        return asyncio.Task(coroutine, loop=loop, **named)

    loop._run_once = counted_once  # type: ignore[attr-defined]
    loop.run_in_executor = counted_execute  # type: ignore[method-assign]
    loop.set_task_factory(make_task)


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    with ProviderThread() as provider_thread:
        yield provider_thread


def _count_functions(work: Work) -> None:
    """Counts our own functions that the event loop's thread calls or resumes: running them is nine tenths of a call's cost."""

    def entered(frame: FrameType, event: str, _argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(OUR_CODE):
            work.add("functions")

    sys.setprofile(entered)


async def count_calls(work: Work, application: Application, headers: dict[str, str], **fields: Any) -> Work:
    """Twenty calls in sequence, after five that warm up connections, statements, plans and token counts."""
    _watch_loop(work)
    bodies = [_body(number, fields) for number in range(CALLS + 5)]
    work.bodies.update(bodies)
    functions: list[int] = []
    _count_functions(work)
    try:
        for number, body in enumerate(bodies):
            work.is_counting = number >= 5
            functions_before = work.counts["functions"]
            assert await ask(application, headers, body) == 200
            functions.append(work.counts["functions"] - functions_before)
    finally:
        sys.setprofile(None)
    work.is_counting = False
    # How much of the background's work falls between these calls depends on the machine. On a busy one, up to three in four have some.
    work.counts["functions"] = sorted(functions[5:])[CALLS // 4] * CALLS
    print({unit_of_work: amount / CALLS for unit_of_work, amount in sorted(work.counts.items())})
    return work


def _body(number: int, fields: dict[str, Any]) -> bytes:
    messages = [
        {"role": "system", "content": "You write a sentence about trams."},
        {"role": "user", "content": f"Write sentence number {number}."},
    ]
    return json.dumps({"model": "model", "messages": messages, "max_tokens": 20, **fields}).encode()


async def test_tagged_call_uses_two_ledger_operations(tmp_path: Path, provider: FakeProvider, work: Work) -> None:
    async with running_application(tmp_path, provider) as application:
        await count_calls(work, application, TAGS)
    assert work.per_call("ledger") == 2  # to reserve, and to settle
    assert work.per_call("commits") <= 3  # those two, and what is done for many calls at once
    assert work.per_call("statements") <= 15
    assert work.per_call("body parsed") == 1
    # Body and answer are 790 bytes. The event adds 700 if the flusher happens to read it meanwhile; nothing is parsed twice.
    assert work.per_call("json bytes") <= 1_600
    assert work.per_call("threads") <= 0.5
    assert work.per_call("tasks") <= 2
    assert work.per_call("loop turns") <= 14
    assert work.per_call("functions") <= 605


async def test_buffered_answer_is_one_write_to_the_client(
    tmp_path: Path, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted as system calls of the event loop, by the port that they leave from."""
    writes: Counter[int] = Counter()
    send = socket.socket.send

    def counted(sender: socket.socket, data: Any, *flags: int) -> int:
        if sender.family == socket.AF_INET:
            writes[sender.getsockname()[1]] += 1
        return send(sender, data, *flags)

    def ask(port: int) -> list[int]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        statuses = []
        for number in range(CALLS):
            connection.request("POST", "/v1/chat/completions", _body(number, {}), {**TAGS, "host": "localhost"})
            answer = connection.getresponse()
            answer.read()
            statuses.append(answer.status)
        connection.close()
        return statuses

    async with (
        running_application(tmp_path, provider) as application,
        bare_server(Guard(application, lambda: "an-id")) as url,
    ):
        port = int(url.rpartition(":")[2])
        monkeypatch.setattr(socket.socket, "send", counted)
        assert await asyncio.to_thread(ask, port) == [200] * CALLS
    assert writes[port] == CALLS


async def test_untagged_call_uses_no_ledger_operation(tmp_path: Path, provider: FakeProvider, work: Work) -> None:
    async with running_application(tmp_path, provider) as application:
        await count_calls(work, application, {})
    assert work.per_call("ledger") == 0
    assert work.per_call("commits") <= 1  # its usage is written with that of others
    assert work.per_call("body parsed") == 1
    assert work.per_call("json bytes") <= 1_600
    assert work.per_call("threads") <= 0.5
    assert work.per_call("tasks") <= 2
    assert work.per_call("loop turns") <= 9
    assert work.per_call("functions") <= 235


async def test_orchestration_adds_no_ledger_operation_to_a_warm_step(
    tmp_path: Path, provider: FakeProvider, work: Work
) -> None:
    async with running_application(tmp_path, provider, orchestrated=True) as application:
        await count_calls(work, application, TAGS)
    assert work.per_call("ledger") == 2
    assert work.per_call("commits") <= 3
    assert work.per_call("statements") <= 17
    assert work.per_call("body parsed") == 1
    assert work.per_call("threads") <= 0.5
    assert work.per_call("tasks") <= 3
    assert work.per_call("loop turns") <= 18
    assert work.per_call("functions") <= 645


async def test_stream_of_200_tokens_uses_two_ledger_operations(
    tmp_path: Path, provider: FakeProvider, work: Work
) -> None:
    text = " ".join(["time"] * 200)
    provider.script(text=text, ignore_max=True)
    try:
        async with running_application(tmp_path, provider) as application:
            await count_calls(work, application, TAGS, stream=True, max_tokens=400)
    finally:
        provider.clear()
    assert work.per_call("ledger") == 2
    assert work.per_call("commits") <= 3
    assert work.per_call("body parsed") == 1


async def test_redis_runs_one_script_to_reserve_and_one_to_settle(
    tmp_path: Path, provider: FakeProvider, work: Work
) -> None:
    with running_server() as server:
        async with running_application(tmp_path, provider, ledger=server.url) as application:
            before = _scripts_run(server)
            await count_calls(work, application, TAGS)
            work.counts["scripts"] = _scripts_run(server) - before
    assert work.per_call("ledger") == 2
    # The two, and those that move the outbox and show that this process lives: more of these on a slow machine.
    assert 2 <= work.per_call("scripts") <= 3.5
    assert work.per_call("body parsed") == 1
    assert work.per_call("threads") <= 0.5
    assert work.per_call("tasks") <= 3
    assert work.per_call("loop turns") <= 16
    assert work.per_call("functions") <= 535


def _scripts_run(server: RedisServer) -> int:
    """The server's own count."""
    stats = server.command("INFO", "commandstats")
    return sum(int(calls) for calls in re.findall(r"cmdstat_(?:evalsha|eval|fcall):calls=(\d+)", stats))


def test_start_of_an_embedded_gateway_imports_no_unneeded_module(tmp_path: Path) -> None:
    """Neither the first start, which makes the store's tables, nor the next."""
    config = CONFIG.format(
        folder=tmp_path,
        provider="http://127.0.0.1:9/v1",
        ledger=f"sqlite:///{tmp_path}/ledger.db",
        orchestrated="true",
        intents=INTENTS,
    )
    (tmp_path / "config.yaml").write_text(config)
    program = (
        "import asyncio, sys\nfrom pathlib import Path\n"
        "from gateway.cli import import_structlog\nimport_structlog()\n"
        "import gateway.server.serving, gateway.cli.main, gateway.cli.serve_command\nfrom gateway.app import Application\n"
        "from gateway.config.loading import load_config\n"
        "async def main():\n"
        "    application = Application(load_config(Path(sys.argv[1]), {}))\n"
        "    await application.start()\n"
        "    print(*sys.modules)\n"
        "    await application.stop()\n"
        "asyncio.run(main())\n"
    )
    for _ in range(2):
        command = [sys.executable, "-c", program, str(tmp_path / "config.yaml")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
        loaded = set(done.stdout.split())
        assert "gateway.app" in loaded
        assert loaded.isdisjoint(NOT_AT_START), sorted(loaded & set(NOT_AT_START))
