"""Chooses the answer storage that matches the ledger: with the same lifetime, and shared by the same processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from gateway.answers.memory import MemoryAnswerStorage
from gateway.answers.port import AnswerLimits, AnswerStorage
from gateway.answers.sqlite import SqliteAnswerStorage, answers_file

_SQLITE: Final = "sqlite:///"


def answer_storage_for(ledger_url: str, limits: AnswerLimits, clock_ms: Callable[[], int]) -> AnswerStorage:
    if ledger_url.startswith("memory://"):
        return MemoryAnswerStorage(limits, clock_ms)
    if ledger_url.startswith(_SQLITE):
        return SqliteAnswerStorage(answers_file(Path(ledger_url.removeprefix(_SQLITE))), limits, clock_ms)
    from gateway.answers.redis import RedisAnswerStorage  # most gateways have no Redis

    return RedisAnswerStorage(ledger_url, limits)
