"""A signal ends every worker, also those that are just being started."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from multiprocessing import active_children
from multiprocessing.context import SpawnProcess
from pathlib import Path

import pytest

from gateway.config.schema import Config
from gateway.server import serving

# Waiting for a worker that was not ended would never return.
pytestmark = pytest.mark.timeout(60)
_WORKERS = 3


def serve_until_signalled(*_: object) -> None:
    """In place of a gateway: a process that does nothing until a signal ends it."""
    signal.pause()


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hangups_count: None) -> Iterator[serving._Workers]:
    monkeypatch.setattr(serving, "_serve_here", serve_until_signalled)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    config = Config.model_validate({"server": {"workers": _WORKERS}, "storage": {"ledger": "redis://127.0.0.1:1"}})
    with socket.socket() as listening:
        yield serving._Workers(config, False, listening)
    for number, handler in before.items():
        signal.signal(number, handler)
    for left in active_children():
        left.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("nth", range(1, _WORKERS + 1))
def test_signal_while_workers_start_ends_those_already_started(
    workers: serving._Workers, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, nth: int
) -> None:
    """The signal arrives when the nth process already runs, before its id has been recorded."""
    started: list[SpawnProcess] = []
    start = SpawnProcess._Popen

    def start_and_signal(process: SpawnProcess) -> object:
        begun = start(process)
        started.append(process)
        if len(started) == nth:
            signal.raise_signal(number)
        return begun

    monkeypatch.setattr(SpawnProcess, "_Popen", staticmethod(start_and_signal))
    assert workers.run() == 0
    assert len(started) == nth
    assert [process.exitcode for process in started] == [-signal.SIGTERM] * nth


def test_signal_while_a_dead_worker_is_replaced_ends_all_workers(
    workers: serving._Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[SpawnProcess] = []
    start = SpawnProcess.start

    def start_and_signal(process: SpawnProcess) -> None:
        if len(started) == _WORKERS:
            signal.raise_signal(signal.SIGTERM)
        start(process)
        started.append(process)
        if len(started) == _WORKERS:
            started[0].kill()

    monkeypatch.setattr(SpawnProcess, "start", start_and_signal)
    assert workers.run() == 0
    assert [process.exitcode for process in started] == [-signal.SIGKILL] + [-signal.SIGTERM] * _WORKERS
