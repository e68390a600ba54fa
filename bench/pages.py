"""How long every admin page takes with a million calls in Postgres.

    nice .venv/bin/python -m bench.pages                          a private Postgres, a million rows over thirty days
    .venv/bin/python -m bench.pages --url postgresql://…          another one, whose database must be empty (or filled before, with --keep)
    … --rows 100000 --looks 40 --keep                             fewer rows, more requests per page, existing rows

The rows are written as the gateway writes them (`bench.flush`), and the pages are requested from a real gateway process on a real socket,
one at a time. The comparison that the health page offers is not included, because it asks the ledger for each run of a day.
Prints the median and the p95 of each page; the exit code is 1 if a p95 is above `--limit-ms`.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import sys
import tempfile
import time
from pathlib import Path

import asyncpg

from bench.flush import flush
from tests.farebox_process import FareboxProcess, running_farebox, tagged

PAGES = (
    "",
    "/runs",
    "/runs?workflow=workflow-1",
    "/runs?state=exhausted",
    "/runs/run-00000007",
    "/workflows",
    "/workflows/workflow-1",
    "/budgets",
    "/budgets?workflow=workflow-1&run=run-00000007&step=step-1",
    "/agents",
    "/agents/agent-1",
    "/settings",
    "/settings/history",
    "/keys",
    "/usage",
    "/usage?group_by=step&metric=cost_usd",
    "/usage?group_by=run",
    "/usage?group_by=model&workflow=workflow-1",
    "/usage?group_by=day",
    "/usage?group_by=key",
    "/usage?group_by=savings&metric=saved_tokens",
    "/audit",
    "/health",
)
CONFIG = {
    "model_list": [{"model_name": "mock", "litellm_params": {"model": "openai/mock", "mock_response": "Done."}}],
    "settings": {"orchestration_enabled": True},
    "budgets": [
        {"scope": "run", "match": "*", "tokens": 40_000},
        {"scope": "workflow", "match": "*", "tokens": 900_000_000, "window": "month"},
        {"scope": "project", "match": "*", "usd": 5_000, "window": "month"},
    ],
}


def page_times_ms(gateway: FareboxProcess, path: str, looks: int) -> list[float]:
    """Milliseconds of each request, sorted; the first one, which fills the caches, is not counted."""
    times = []
    for _ in range(looks + 1):
        began = time.perf_counter()
        reply = gateway.get(f"/admin{path}")
        times.append((time.perf_counter() - began) * 1000)
        assert reply.status == 200, (path, reply.status, reply.body[:300])
    return sorted(times[1:])


async def analyze(url: str) -> None:
    """Autovacuum does this within a minute of so many new rows; without it, Postgres plans as if the tables were empty."""
    connection = await asyncpg.connect(url)
    await connection.execute("ANALYZE")
    await connection.close()


def measure(url: str, arguments: argparse.Namespace) -> bool:
    if not arguments.keep:
        elapsed_s, _, _ = asyncio.run(flush(url, arguments.rows, 1, 30))
        print(f"{arguments.rows:,} rows written in {elapsed_s:.0f} s")
    if url.startswith("postgresql"):
        asyncio.run(analyze(url))
    config = {**CONFIG, "storage": {"store": url, "ledger": "memory://"}}
    slow = 0
    with tempfile.TemporaryDirectory() as folder, running_farebox(Path(folder), config, module="gateway") as gateway:
        for number in range(30):
            gateway.chat(
                "Summarize this.", tagged("workflow-1", f"now-{number}", "step-1"), model="mock", max_tokens=50
            )
        print(f"{'page':<62} {'median':>8} {'p95':>8} ms", flush=True)
        for path in PAGES:
            times = page_times_ms(gateway, path, arguments.looks)
            p95 = times[math.ceil(len(times) * 0.95) - 1]
            slow += p95 > arguments.limit_ms
            print(
                f"/admin{path:<56} {times[len(times) // 2]:8.0f} {p95:8.0f}{'  slow' if p95 > arguments.limit_ms else ''}"
            )
    print(f"{slow} of {len(PAGES)} pages are above {arguments.limit_ms} ms at p95")
    return slow == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="the store; default: a private Postgres")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--looks", type=int, default=20)
    parser.add_argument("--limit-ms", type=int, default=300)
    parser.add_argument("--keep", action="store_true", help="use the existing rows")
    arguments = parser.parse_args()
    if arguments.url:
        sys.exit(not measure(arguments.url, arguments))
    from tests.postgres_server import (
        private_server,
    )  # imported only here, because it needs pytest and the wheel with the server

    with private_server(durable=True) as url:
        sys.exit(not measure(url, arguments))


if __name__ == "__main__":
    main()
