"""SIGTERM: open streams are finished, or end with an error event, and everything is booked before the process ends."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from tests.acceptance.serving import PROMPT_TOKENS, Served, finish_of, ledger_rows, serving, store_rows
from tests.farebox_process import Reply, tagged
from tests.waiting import until

BUDGETS = [{"scope": "run", "match": "*", "tokens": 100_000}]


def check_books(folder: Path, run: str) -> int:
    assert ledger_rows(folder, "SELECT id FROM reservation WHERE state = 'pending'") == []
    assert ledger_rows(folder, "SELECT id FROM outbox") == []
    account = ledger_rows(folder, "SELECT * FROM account WHERE account = ?", f"run/{run}")[0]
    assert account["reserved_tokens"] == 0
    booked = store_rows(folder, "SELECT sum(total_tokens) AS tokens FROM token_usage WHERE run = ?", run)
    assert booked[0]["tokens"] == account["settled_tokens"]
    return int(account["settled_tokens"])


def open_streams(served: Served, pool: ThreadPoolExecutor, number: int) -> list[Future[tuple[Reply, list[str]]]]:
    futures = [pool.submit(served.stream, tagged("wf", "r-stop"), max_tokens=200) for _ in range(number)]
    until(lambda: served.seen() == number, 10, "all streams are open")
    return futures


def test_sigterm_finishes_and_books_50_open_streams(tmp_path: Path) -> None:
    with (
        serving(tmp_path, budgets=BUDGETS, server={"drain_seconds": 20}) as served,
        ThreadPoolExecutor(50) as pool,
    ):
        served.provider.script(tokens=40, chunk_delay_ms=40, times=None)
        streams = open_streams(served, pool, 50)
        assert served.gateway.process is not None
        served.gateway.process.send_signal(signal.SIGTERM)
        host, _, port = served.gateway.url.removeprefix("http://").partition(":")
        time.sleep(0.3)
        refused = False
        try:
            with socket.create_connection((host, int(port)), timeout=1) as late:
                late.sendall(b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                late.settimeout(0.5)
                refused = b" 200 " not in late.recv(100)
        except OSError:
            refused = True
        assert refused, "new connections are refused"
        for future in streams:
            reply, events = future.result(30)
            assert reply.status == 200
            assert (events[-1], finish_of(events)) == ("[DONE]", "stop")
        assert served.gateway.process.wait(20) == 0
        assert check_books(tmp_path, "r-stop") == 50 * (PROMPT_TOKENS + 40)


def test_streams_outlasting_the_drain_end_with_an_error_event_and_are_booked(tmp_path: Path) -> None:
    with serving(tmp_path, budgets=BUDGETS, server={"drain_seconds": 1}) as served, ThreadPoolExecutor(12) as pool:
        served.provider.script(
            tokens=4000, chunk_delay_ms=20, times=None, when=lambda received: bool(received.body.get("stream"))
        )
        served.provider.script(delay_ms=60_000, times=None)
        streams = open_streams(served, pool, 5)
        whole = pool.submit(served.chat, tagged("wf", "r-stop"), max_tokens=200)
        until(lambda: served.seen() == 6)
        time.sleep(0.5)
        assert served.gateway.stop() == 0
        for future in streams:
            reply, events = future.result(10)
            assert reply.status == 200
            errors = [json.loads(event)["error"]["code"] for event in events if event.startswith('{"error"')]
            assert errors == ["gateway_stopping"], events[-2:]
        reply = whole.result(10)
        assert (reply.status, reply.json()["error"]["code"]) == (503, "gateway_stopping")
        settled = check_books(tmp_path, "r-stop")
        assert 6 * PROMPT_TOKENS < settled < 6 * PROMPT_TOKENS + 6 * 200


def test_second_sigterm_ends_the_drain_at_once(tmp_path: Path) -> None:
    with serving(tmp_path, budgets=BUDGETS, server={"drain_seconds": 60}) as served:
        served.provider.script(delay_ms=60_000)
        connection = http.client.HTTPConnection(served.gateway.url.removeprefix("http://"), timeout=10)
        body = json.dumps({"model": "fake", "messages": [{"role": "user", "content": "hi"}]})
        connection.request("POST", "/v1/chat/completions", body, tagged("wf", "r-second"))
        until(lambda: served.seen() == 1)
        assert served.gateway.process is not None
        served.gateway.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert served.gateway.process.poll() is None, "the first signal waits for the call"
        served.gateway.process.send_signal(signal.SIGTERM)
        served.gateway.process.wait(5)
        connection.close()
        assert "Traceback" not in served.gateway.log


def test_refusals_just_before_the_stop_are_recorded(tmp_path: Path) -> None:
    with serving(tmp_path, budgets=BUDGETS) as served:
        headers = {**tagged("wf", "r-late"), "x-workflow-budget-tokens": "1"}
        assert [served.chat(headers).status for _ in range(5)] == [402] * 5
        assert served.gateway.stop() == 0
        rows = store_rows(tmp_path, "SELECT status, code, total_tokens FROM token_usage WHERE run = 'r-late'")
        assert [(row["status"], row["code"], row["total_tokens"]) for row in rows] == [
            ("refused", "request_exceeds_budget", 0)
        ] * 5
