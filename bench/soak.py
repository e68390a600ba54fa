"""A steady mixed load for minutes or hours, and whether anything grows that should not: memory, descriptors, tasks, connections.

    python -m bench.soak --minutes 5        and 30, and 120: `make soak-5`, `make soak-30`, `make soak`

Runs one gateway on its embedded engines with the fake provider. It ends by itself; the exit code is 1 if something grew or was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.fake_provider import FakeProvider
from tests.farebox_process import FareboxProcess

WARM_SHARE = 0.4  # caches fill and the allocator settles: growth in this time is no leak
SAMPLE_S = 5.0
RSS_SLOPE_MB_H_MAX = 1.0
# A slope over a few minutes is mostly noise, so growth is judged by its total as well as by its rate per hour.
RSS_GROWTH_MB_NOISE = 6.0
SLACK = 12  # descriptors and tasks that happen to be open at the moment of a sample


@dataclass
class Sample:
    at_s: float
    rss_mb: float
    descriptors: int
    threads: int
    tasks: int
    connections: int
    in_flight: int


@dataclass
class Soak:
    url: str
    pid: int
    rate: float
    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    number: int = 0

    def headers(self) -> dict[str, str]:
        """A run of twenty calls in four steps; one call in five is untagged."""
        self.number += 1
        if self.number % 5 == 0:
            return {}
        run, step = self.number // 20, self.number % 4
        return {"x-workflow-id": f"soak-{run % 7}", "x-workflow-run-id": f"soak-{run}", "x-workflow-step": f"s-{step}"}

    async def call(self, session: aiohttp.ClientSession, chance: random.Random) -> None:
        kind = chance.choices(
            ["buffered", "streamed", "left", "refused", "provider_error", "broken", "malformed", "cached"],
            [40, 30, 6, 6, 6, 4, 4, 4],
        )[0]
        fake: dict[str, Any] = {"tokens": chance.randint(5, 200), "delay_ms": chance.randint(0, 300)}
        body: dict[str, Any] = {"model": "fake", "max_tokens": 256, "stream": kind in ("streamed", "left", "broken")}
        headers = self.headers()
        if kind == "refused":
            headers |= {"x-workflow-id": "spent", "x-workflow-run-id": "spent"}
        elif kind == "provider_error":
            fake = {"status": chance.choice([400, 429, 500, 503])}
        elif kind == "broken":
            fake |= {"cut_after": 3, "chunk_delay_ms": 1}
        elif kind == "cached":
            headers["x-farebox-cache"] = "30"
            fake = {"tokens": 20}
        elif kind == "left":
            fake |= {"tokens": 200, "chunk_delay_ms": 5}
        text = "what is new? " + ("" if kind == "cached" else "word " * chance.randint(1, 400))
        body["messages"] = [{"role": "user", "content": text + json.dumps({"fake": fake})}]
        data = b"{nonsense" if kind == "malformed" else json.dumps(body).encode()
        self.ends[f"{kind} {await self.ask(session, kind, data, headers)}"] += 1

    async def ask(self, session: aiohttp.ClientSession, kind: str, data: bytes, headers: dict[str, str]) -> str:
        try:
            async with session.post(f"{self.url}/v1/chat/completions", data=data, headers=headers) as answer:
                if kind == "left":
                    await answer.content.readany()
                    answer.close()
                    return "left"
                content = await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            self.wrong.append(f"{kind}: {error!r}")
            return "lost"
        if kind in ("buffered", "streamed", "cached") and answer.status != 200:
            self.wrong.append(f"{kind}: {answer.status} {content[:200]!r}")
        if kind == "streamed" and not content.rstrip().endswith(b"data: [DONE]"):
            self.wrong.append(f"streamed: ends with {content[-80:]!r}")
        return str(answer.status)

    async def sample(self, session: aiohttp.ClientSession, started_s: float) -> None:
        async with session.get(f"{self.url}/metrics") as answer:
            figures = _figures(await answer.text())
        status = Path(f"/proc/{self.pid}/status").read_text()
        facts = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        self.samples.append(
            Sample(
                time.monotonic() - started_s,
                int(facts["VmRSS"].split()[0]) / 1024,
                len(os.listdir(f"/proc/{self.pid}/fd")),
                int(facts["Threads"]),
                int(figures.get("farebox_tasks", 0)),
                int(figures.get("farebox_connections", 0)),
                int(figures.get("farebox_calls_in_flight", 0)),
            )
        )

    async def run(self, minutes: float) -> None:
        chance, started_s, under_way = random.Random(1), time.monotonic(), set[asyncio.Task[None]]()
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as session:
            next_sample_s = started_s
            while (now_s := time.monotonic()) < started_s + 60 * minutes:
                task = asyncio.create_task(self.call(session, chance))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
                if now_s >= next_sample_s:
                    next_sample_s += SAMPLE_S
                    await self.sample(session, started_s)
                await asyncio.sleep(chance.expovariate(self.rate))
            await asyncio.gather(*under_way)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
            await asyncio.sleep(2 * SAMPLE_S)
            await self.sample(session, started_s)


def _figures(text: str) -> dict[str, float]:
    figures: dict[str, float] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            figures[name] = float(value)
    return figures


def slope_an_hour(samples: list[Sample], of: str) -> float:
    """Least squares over the given samples."""
    line = statistics.linear_regression(
        [sample.at_s for sample in samples], [getattr(sample, of) for sample in samples]
    )
    return line.slope * 3600


def judge(soak: Soak, minutes: float, totals: dict[str, Any]) -> list[str]:
    """What is wrong, if anything."""
    warm = [sample for sample in soak.samples[:-1] if sample.at_s >= WARM_SHARE * 60 * minutes]
    end = soak.samples[-1]
    faults = [f"{len(soak.wrong)} calls ended wrongly, such as {soak.wrong[0]}"] if soak.wrong else []
    slope = slope_an_hour(warm, "rss_mb")
    grown = slope * (warm[-1].at_s - warm[0].at_s) / 3600
    if slope > RSS_SLOPE_MB_H_MAX and grown > RSS_GROWTH_MB_NOISE:
        faults.append(f"memory grows by {slope:.1f} MB an hour")
    for name in ("descriptors", "threads", "tasks"):
        half = len(warm) // 2
        before = statistics.median(getattr(sample, name) for sample in warm[:half])
        after = statistics.median(getattr(sample, name) for sample in warm[half:])
        if after > before + SLACK:
            faults.append(f"{name} grow from {before} to {after}")
    if end.in_flight or end.connections > 2:
        faults.append(f"after the load {end.in_flight} calls and {end.connections} connections are left")
    calls = sum(count for name, count in soak.ends.items() if not name.startswith("malformed"))
    if totals["events"] != calls:
        faults.append(f"{calls} calls left {totals['events']} events")
    if totals["reserved"] or totals["wrong"]:
        faults.append(f"the books are wrong: {totals}")
    return faults


def ledger_totals(folder: Path) -> dict[str, Any]:
    """After a clean stop, nothing may be held, and the rows of each run must add up to its account."""
    from tests.acceptance.serving import ledger_rows, store_rows

    sums = store_rows(
        folder, "SELECT run, SUM(total_tokens) AS tokens, COUNT(*) AS calls FROM token_usage GROUP BY run"
    )
    booked = {row["run"]: row["tokens"] for row in sums}
    accounts = ledger_rows(
        folder, "SELECT account, settled_tokens, reserved_tokens FROM account WHERE account LIKE 'run/%'"
    )
    return {
        "events": sum(row["calls"] for row in sums),
        "runs": len(accounts),
        "reserved": sum(row["reserved_tokens"] for row in accounts),
        "wrong": [row["account"] for row in accounts if row["settled_tokens"] != booked.get(row["account"][4:], 0)],
    }


def table(soak: Soak, minutes: float) -> str:
    warm = [sample for sample in soak.samples[:-1] if sample.at_s >= WARM_SHARE * 60 * minutes]
    lines = ["| | warm | at the end | most | afterwards |", "|---|---|---|---|---|"]
    for name in ("rss_mb", "descriptors", "threads", "tasks", "connections"):
        values = [round(getattr(sample, name), 1) for sample in warm]
        lines.append(
            f"| {name} | {values[0]} | {values[-1]} | {max(values)} | {round(getattr(soak.samples[-1], name), 1)} |"
        )
    return "\n".join(lines)


async def soak(minutes: float, rate: float, folder: Path) -> int:
    async with FakeProvider() as provider:
        entry = {
            "model_name": "fake",
            "litellm_params": {"model": "openai/gpt-4o-mini", "api_base": provider.openai_url, "api_key": "k"},
            "model_info": {"input_cost_per_token": 1e-7, "output_cost_per_token": 4e-7, "max_output_tokens": 4096},
        }
        budgets = [{"scope": "run", "match": "*", "tokens": 1_000_000}, {"scope": "run", "match": "spent", "tokens": 1}]
        config = {"model_list": [entry], "budgets": budgets, "router_settings": {"num_retries": 0}}
        gateway = FareboxProcess(folder, config, module="gateway")
        await asyncio.to_thread(gateway.start)
        try:
            work = Soak(gateway.url, gateway.pid, rate)
            forgetting = asyncio.create_task(_forget(provider))
            await work.run(minutes)
            forgetting.cancel()
        finally:
            code = await asyncio.to_thread(gateway.stop)
    totals = ledger_totals(folder)
    faults = judge(work, minutes, totals) + ([] if code == 0 else [f"it stopped with {code}"])
    warm = [sample for sample in work.samples[:-1] if sample.at_s >= WARM_SHARE * 60 * minutes]
    print(
        f"{minutes:g} minutes, {sum(work.ends.values())} calls, {sum(work.ends.values()) / minutes / 60:.1f} a second"
    )
    print(table(work, minutes))
    print(f"memory: {slope_an_hour(warm, 'rss_mb'):+.1f} MB an hour over the last {1 - WARM_SHARE:.0%}")
    print("ends: " + ", ".join(f"{name}: {count}" for name, count in sorted(work.ends.items())))
    print(
        f"books: {totals['events']} events of {totals['runs']} runs, {totals['reserved']} tokens held, {len(totals['wrong'])} wrong"
    )
    print("\n".join(f"WRONG: {fault}" for fault in faults) or "nothing grew, nothing was lost")
    return 1 if faults else 0


async def _forget(provider: FakeProvider) -> None:
    """The provider's memory of its requests is not measured here, but would fill this process."""
    while True:
        await asyncio.sleep(30)
        provider.requests.clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--rate", type=float, default=20, help="calls per second")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="farebox-soak-") as folder:
        sys.exit(asyncio.run(soak(options.minutes, options.rate, Path(folder))))


if __name__ == "__main__":
    main()
