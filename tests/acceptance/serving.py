"""A gateway process with a fake provider, which runs in the test process, in its own thread and event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.ledger.sqlite_storage import SqliteStorage
from tests.fake_provider import FakeProvider, Received
from tests.farebox_process import FareboxProcess, Reply, running_farebox

PROMPT_TOKENS = 8  # of the message "hi": three a message, its role, its text, and three for priming
RESERVED_TOKENS = 17  # what is set aside for it: 8 and one percent more, rounded up, for what no tokenizer shows
INPUT_NANO_USD, OUTPUT_NANO_USD = 100, 400  # what `model` costs a token


class ProviderThread:
    """Lets the provider answer while a test waits for the gateway."""

    def __init__(self, provider: FakeProvider | None = None) -> None:
        self.provider = provider or FakeProvider()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> FakeProvider:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.provider.start(), self._loop).result(10)
        return self.provider

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self.provider.stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@dataclass
class Served:
    gateway: FareboxProcess
    provider: FakeProvider

    def chat(self, headers: Mapping[str, str] | None = None, content: str = "hi", **fields: Any) -> Reply:
        return self.gateway.chat(content, headers, **fields)

    def stream(
        self, headers: Mapping[str, str] | None = None, content: str = "hi", **fields: Any
    ) -> tuple[Reply, list[str]]:
        """A streamed call, and its events: `data:` payloads, and comments with their colon."""
        reply = self.gateway.chat(content, headers, stream=True, **fields)
        return reply, events_of(reply.body.decode())

    @property
    def last(self) -> Received:
        return self.provider.last

    def seen(self) -> int:
        """How many requests reached the provider."""
        return len(self.provider.requests)

    def balance(self, headers: Mapping[str, str], unit: str = "tokens") -> dict[str, Any]:
        """Settled, reserved and limit of the innermost limited account, from the refusal of a call that can never fit."""
        no_clamp = {**headers, "x-workflow-options": "no-clamp"}
        reply = self.chat(no_clamp, n=128, max_tokens=4096)
        assert reply.status == 402, (reply.status, reply.body)
        facts: dict[str, Any] = reply.json()["error"]["metadata"]
        assert facts["unit"] == unit, facts
        return facts

    def metric(self, name: str, **labels: str) -> float:
        """The sum of all samples of a metric that carry these labels."""
        total = 0.0
        for line in self.gateway.get("/metrics").body.decode().splitlines():
            if line.startswith((name + "{", name + " ")) and all(f'{k}="{v}"' in line for k, v in labels.items()):
                total += float(line.rsplit(" ", 1)[1])
        return total


def words(tokens: int) -> str:
    """A text with exactly this many tokens, in each of OpenAI's tokenizers and in the provider's own."""
    return " ".join(["time"] * tokens)


def events_of(text: str) -> list[str]:
    events = []
    for block in text.split("\n\n"):
        for line in block.splitlines():
            if line.startswith("data:"):
                events.append(line[5:].strip())
            elif line.startswith(":"):
                events.append(line)
    return events


def text_of(events: list[str]) -> str:
    parts = []
    for event in events:
        if event.startswith("{"):
            for choice in json.loads(event).get("choices") or ():
                parts.append((choice.get("delta") or {}).get("content") or "")
    return "".join(parts)


def finish_of(events: list[str]) -> str | None:
    finish_reason = None
    for event in events:
        if event.startswith("{"):
            for choice in json.loads(event).get("choices") or ():
                finish_reason = choice.get("finish_reason") or finish_reason
    return finish_reason


def budget_comment(events: list[str]) -> dict[str, Any]:
    """The object of the comment `: budget {…}`, which must precede `[DONE]`."""
    comments = [event for event in events if event.startswith(": budget ")]
    assert len(comments) == 1, events[-4:]
    assert events[-1] == "[DONE]", events[-4:]
    assert events[-2] == comments[0], events[-4:]
    comment: dict[str, Any] = json.loads(comments[0].removeprefix(": budget "))
    return comment


def action_names(reply: Reply) -> list[str]:
    """What was done to the call: `compress`, `route`, … without their values."""
    header = reply.headers.get("x-budget-actions", "")
    return [part.split("=")[0] for part in header.split(", ")] if header else []


def model(url: str, name: str = "fake", upstream: str = "openai/gpt-4o-mini", **info: Any) -> dict[str, Any]:
    """An entry of `model_list` whose tokens the gateway counts exactly. `priced=False` leaves the price out."""
    priced = info.pop("priced", True)
    costs = {"input_cost_per_token": 1e-7, "output_cost_per_token": 4e-7} if priced else {}
    return {
        "model_name": name,
        "litellm_params": {"model": upstream, "api_base": url, "api_key": "upstream-key"},
        "model_info": {**costs, "max_output_tokens": 4096, **info},
    }


@contextlib.contextmanager
def serving(
    folder: Path,
    *,
    provider: FakeProvider | None = None,
    models: Callable[[FakeProvider], list[dict[str, Any]]] | None = None,
    environment: Mapping[str, str] | None = None,
    **sections: Any,
) -> Iterator[Served]:
    """`sections` are those of the configuration file: budgets, reservations, router_settings, …"""
    with ProviderThread(provider) as running:
        model_list = models(running) if models else [model(running.openai_url)]
        config = {"model_list": model_list, "router_settings": {"num_retries": 0}, **sections}
        with running_farebox(folder, config, environment=environment or {}) as gateway:
            yield Served(gateway, running)


def _fold_journal(connection: sqlite3.Connection) -> None:
    storage = SqliteStorage(connection, 0)
    storage.fold()
    storage.commit(0)


def rows(
    file: Path, statement: str, *values: Any, prepare: Callable[[sqlite3.Connection], None] = lambda _: None
) -> list[dict[str, Any]]:
    """Rows of an embedded database whose gateway has ended. A copy is read: opening the file itself would
    recover what a killed gateway left behind, which the next gateway must do."""
    with tempfile.TemporaryDirectory() as folder:
        for part in file.parent.glob(f"{file.name}*"):
            shutil.copy(part, folder)
        connection = sqlite3.connect(Path(folder) / file.name, isolation_level=None)
        prepare(connection)
        connection.row_factory = sqlite3.Row
        try:
            return [dict(row) for row in connection.execute(statement, values)]
        finally:
            connection.close()


def ledger_rows(folder: Path, statement: str, *values: Any) -> list[dict[str, Any]]:
    """The tables as the next gateway finds them, with the journal of a killed one applied."""
    return rows(folder / ".farebox" / "ledger.db", statement, *values, prepare=_fold_journal)


def store_rows(folder: Path, statement: str, *values: Any) -> list[dict[str, Any]]:
    return rows(folder / ".farebox" / "store.db", statement, *values)
