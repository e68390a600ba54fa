"""Whether the embedded ledger can be written, for health checks and alerts: a full disk or a deleted file is an outage, too.

    available     ──  an operation failed for lack of the file or the disk   ──▶  out of reach
    out of reach  ──  a write of one row succeeded, tried every second       ──▶  available

It stops no operation: each tries to write, and fails at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import structlog

from gateway.ledger.port import LedgerUnavailable

PROBE_S: Final = 1.0
_log = structlog.get_logger(__name__)


class SqliteOutage:
    """`reason` is empty while the file can be written. `write` writes a row, or raises as every operation does."""

    def __init__(self, loop: asyncio.AbstractEventLoop, write: Callable[[], asyncio.Future[Any]]) -> None:
        self.reason = ""
        self._loop = loop
        self._write = write
        self._timer: asyncio.TimerHandle | None = None
        self._is_stopped = False

    def failed(self, reason: str) -> None:
        if not self.reason:
            _log.error("ledger_out_of_reach", reason=reason)
            self._probe_later()
        self.reason = reason

    def stop(self) -> None:
        self._is_stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def _probe_later(self) -> None:
        if not self._is_stopped:
            self._timer = self._loop.call_later(PROBE_S, self._probe)

    def _probe(self) -> None:
        try:
            self._write().add_done_callback(self._probed)
        except LedgerUnavailable:  # too much is waiting for the disk
            self._probe_later()

    def _probed(self, answer: asyncio.Future[Any]) -> None:
        if answer.cancelled() or answer.exception() is not None:
            self._probe_later()
            return
        self.reason = ""
        _log.info("ledger_is_back")
