"""kill -9 of a real gateway at critical moments: settled usage is booked once, and holds are charged or released."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.serving import PROMPT_TOKENS, RESERVED_TOKENS, Served, ledger_rows, model, serving, store_rows
from tests.fake_provider import FakeProvider
from tests.farebox_process import FareboxProcess, Reply, tagged
from tests.waiting import until

LIMIT = 5000
SHORT = {"ttl_seconds": 1, "sweep_seconds": 0.2}


@contextlib.contextmanager
def crashable(
    folder: Path,
    limit: int = LIMIT,
    models: Callable[[FakeProvider], list[dict[str, Any]]] | None = None,
    **reservations: Any,
) -> Iterator[Served]:
    budgets = [{"scope": "run", "match": "*", "tokens": limit}]
    with serving(folder, budgets=budgets, models=models, reservations={**SHORT, **reservations}) as running:
        yield running


def account(folder: Path, run: str) -> tuple[int, int]:
    """Settled and reserved tokens of a run, in a ledger whose gateway has stopped."""
    rows = ledger_rows(folder, "SELECT settled_tokens, reserved_tokens FROM account WHERE account = ?", f"run/{run}")
    return (rows[0]["settled_tokens"], rows[0]["reserved_tokens"]) if rows else (0, 0)


def usage(folder: Path, run: str) -> list[dict[str, Any]]:
    return store_rows(folder, "SELECT * FROM token_usage WHERE run = ? AND requests > 0", run)


def check_books(folder: Path, limit: int = LIMIT) -> None:
    """After everything: nothing held, nothing above its limit, and the usage rows of each run add up to its account."""
    assert ledger_rows(folder, "SELECT id FROM reservation WHERE state = 'pending'") == []
    assert ledger_rows(folder, "SELECT id FROM outbox") == []
    for row in ledger_rows(folder, "SELECT * FROM account WHERE account LIKE 'run/%'"):
        run = row["account"].removeprefix("run/")
        assert row["reserved_tokens"] == 0, run
        assert row["settled_tokens"] <= limit, run
        total = sum(used["total_tokens"] for used in store_rows(folder, "SELECT * FROM token_usage WHERE run = ?", run))
        assert total == row["settled_tokens"], run


def restart_sweep_and_stop(served: Served) -> None:
    """Start again, let the sweeper resolve lost holds and the flusher empty the outbox, and stop gracefully."""
    served.gateway.start()
    time.sleep(SHORT["ttl_seconds"] + 3 * SHORT["sweep_seconds"] + 0.3)
    assert served.gateway.stop() == 0


def call_in_background(served: Served, run: str, **fields: Any) -> threading.Thread:
    """Make a call whose answer is ignored."""

    def call() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            served.chat(tagged("wf", run), max_tokens=100, **fields)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize(("on_lost", "booked"), [("charge", RESERVED_TOKENS + 100), ("release", 0)])
def test_kill_while_waiting_for_the_provider_charges_or_releases_the_hold(
    tmp_path: Path, on_lost: str, booked: int
) -> None:
    """The provider has the request and will bill an unknown amount: by default the whole hold is charged."""
    with crashable(tmp_path, on_lost=on_lost) as served:
        served.provider.script(delay_ms=60_000)
        thread = call_in_background(served, "r-thinking")
        until(lambda: served.seen() == 1)
        served.gateway.kill()
        thread.join(5)
        assert account(tmp_path, "r-thinking") == (0, RESERVED_TOKENS + 100), "held, and nothing settled"
        restart_sweep_and_stop(served)
        assert account(tmp_path, "r-thinking") == (booked, 0)
        check_books(tmp_path)
        lost = store_rows(tmp_path, "SELECT status, total_tokens FROM token_usage WHERE run = 'r-thinking'")
        assert [(row["status"], row["total_tokens"]) for row in lost] == [("lost", booked)]


@contextlib.contextmanager
def provider_that_accepts_no_connection() -> Iterator[str]:
    """A socket whose queue of connections is full, so that clients wait, as behind a firewall that drops packets."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            filling = stack.enter_context(socket.socket())
            filling.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filling.connect(listening.getsockname())
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"


def pending_on_lost(folder: Path) -> str:
    rows = ledger_rows(folder, "SELECT on_lost FROM reservation WHERE state = 'pending'")
    return str(rows[0]["on_lost"]) if rows else ""


def test_kill_before_anything_was_sent_releases_the_hold(tmp_path: Path) -> None:
    """The gateway waited for a connection and had reported so: the hold is released when it expires, and nothing is settled."""
    with provider_that_accepts_no_connection() as url, crashable(tmp_path, models=lambda _: [model(url)]) as served:
        thread = call_in_background(served, "r-unsent")
        until(lambda: pending_on_lost(tmp_path) == "release")
        served.gateway.kill()
        thread.join(5)
        assert account(tmp_path, "r-unsent") == (0, RESERVED_TOKENS + 100)
        restart_sweep_and_stop(served)
        assert account(tmp_path, "r-unsent") == (0, 0)
        check_books(tmp_path)
        assert usage(tmp_path, "r-unsent") == []


def test_kill_during_a_stream_charges_the_hold(tmp_path: Path) -> None:
    with crashable(tmp_path) as served:
        served.provider.script(tokens=2000, chunk_delay_ms=5)
        connection = http.client.HTTPConnection(served.gateway.url.removeprefix("http://"), timeout=10)
        body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "stream": True}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), tagged("wf", "r-stream"))
        connection.getresponse().read(2000)
        served.gateway.kill()
        connection.close()
        held = account(tmp_path, "r-stream")[1]
        restart_sweep_and_stop(served)
        assert account(tmp_path, "r-stream") == (held, 0)
        assert held > PROMPT_TOKENS + served.last.content_events
        check_books(tmp_path)


def test_kill_right_after_answers_books_each_answer_once(tmp_path: Path) -> None:
    with crashable(tmp_path) as served:
        replies: list[Reply] = []
        for at in range(3):
            with ThreadPoolExecutor(8) as pool:
                replies += pool.map(
                    lambda i, at=at: served.chat(tagged("wf", f"r-{at}-{i % 3}"), max_tokens=60), range(20)
                )
            served.gateway.kill()  # the answers are out, the outbox is not
            served.gateway.start()
        assert served.gateway.stop() == 0
        assert {reply.status for reply in replies} == {200}
        for reply in replies:
            rows = store_rows(
                tmp_path, "SELECT total_tokens FROM token_usage WHERE request_id = ?", reply.headers["x-request-id"]
            )
            assert [row["total_tokens"] for row in rows] == [reply.json()["usage"]["total_tokens"]]
        check_books(tmp_path)


def test_kill_while_the_store_is_locked_stores_each_event_once(tmp_path: Path) -> None:
    """Between settle and flush: the events wait in the ledger's outbox and reach the store once."""
    with crashable(tmp_path) as served:
        blocker = sqlite3.connect(tmp_path / ".farebox" / "store.db", isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        replies = [served.chat(tagged("wf", "r-outbox"), max_tokens=60) for _ in range(5)]
        assert {reply.status for reply in replies} == {200}, "an unavailable store refuses no call"
        served.gateway.kill()
        blocker.execute("ROLLBACK")
        blocker.close()
        assert usage(tmp_path, "r-outbox") == []
        assert len(ledger_rows(tmp_path, "SELECT id FROM outbox")) == 5
        restart_sweep_and_stop(served)
        assert len(usage(tmp_path, "r-outbox")) == 5
        check_books(tmp_path)


def test_repeated_kills_under_load_book_every_answered_call(tmp_path: Path) -> None:
    """Three kills at random moments; every answer that a client got in full is booked with the usage it stated."""
    chance = random.Random(7)
    answered: dict[str, int] = {}
    with crashable(tmp_path) as served:
        served.provider.script(times=None, delay_ms=15)

        def call(at: int) -> None:
            headers = tagged("wf", f"r-{at % 6}", f"s-{at % 3}")
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                reply = served.chat(headers, max_tokens=40)
                if reply.status == 200:
                    answered[reply.headers["x-request-id"]] = reply.json()["usage"]["total_tokens"]

        def is_under_way() -> bool:
            return len(answered) >= goal

        for _ in range(3):
            with ThreadPoolExecutor(12) as pool:
                goal = len(answered) + 8
                for at in range(120):
                    pool.submit(call, at)
                # On a busy machine even the first answers take a while.
                until(is_under_way, 30, "so many are answered")
                time.sleep(chance.random() / 3)
                served.gateway.kill()
            served.gateway.start()
        time.sleep(2)
        assert served.gateway.stop() == 0
    assert len(answered) > 20
    booked = {
        row["request_id"]: row["total_tokens"]
        for row in store_rows(tmp_path, "SELECT request_id, total_tokens FROM token_usage")
    }
    assert {name: booked.get(name) for name in answered} == answered
    check_books(tmp_path)


def test_second_process_on_the_same_files_is_refused_with_a_reason(tmp_path: Path) -> None:
    with crashable(tmp_path) as served:
        second = FareboxProcess(tmp_path, served.gateway.config)
        with pytest.raises(RuntimeError, match=r"ended with 1") as caught:
            second.start()
        message = str(caught.value)
        assert "Traceback" not in message
        assert "process" in message
        assert served.chat(tagged(), max_tokens=20).status == 200, "the first process still serves"


@pytest.mark.parametrize("damage", ["truncated", "foreign"])
def test_damaged_ledger_stops_the_start_with_a_reason(tmp_path: Path, damage: str) -> None:
    with crashable(tmp_path) as served:
        assert served.chat(tagged(), max_tokens=20).status == 200
        assert served.gateway.stop() == 0
        ledger = tmp_path / ".farebox" / "ledger.db"
        data = ledger.read_bytes()
        ledger.write_bytes(data[: len(data) // 2] if damage == "truncated" else b"not a database at all" * 1000)
        with pytest.raises(RuntimeError, match=r"ended with 1") as caught:
            served.gateway.start()
        assert "ledger.db" in str(caught.value)
        assert "Traceback" not in str(caught.value)
