"""Usage events for tests of the store, and a look at what became of them."""

from __future__ import annotations

import time
from typing import Any

import orjson
from sqlalchemy import select
from sqlalchemy.schema import Table

from gateway.ledger.port import EntryKind, OutboxEntry
from gateway.store.database import Database
from gateway.store.tables import token_usage
from policies.amounts import ZERO, Amount

NOW_MS = time.time_ns() // 1_000_000
DAY_MS = 86_400_000


def entry(
    id: str = "e1",
    tokens: int = 150,
    nano_usd: int = 1_500,
    *,
    kind: EntryKind = EntryKind.SETTLED,
    at_ms: int = NOW_MS,
    project: str = "default",
    overrun: Amount = ZERO,
    detail: dict[str, Any] | None = None,
    **draft: Any,
) -> OutboxEntry:
    """An event as the pipeline writes it; `draft` and `detail` replace single fields."""
    event = {"workflow": "wf", "run": "r1", "step": "draft", "agent": "ada", "key_id": "k1", "model": "small"} | draft
    late = {"status": "ok", "input_tokens": 100, "output_tokens": 50} | (detail or {})
    amount = Amount(tokens, nano_usd, 1)
    return OutboxEntry(id, id, kind, project, amount, at_ms, orjson.dumps(event), orjson.dumps(late), overrun)


async def rows_of(db: Database, table: Table = token_usage) -> list[dict[str, Any]]:
    async with db.begin() as connection:
        return [dict(row) for row in (await connection.execute(select(table))).mappings()]
