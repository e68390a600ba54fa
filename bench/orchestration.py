"""The cost of orchestration: classifying intents, allocating a run's tokens, and all of it on a call.

    .venv/bin/python -m bench.orchestration [--calls N] [--document docs/benchmarks-orchestration.md]

Figures are CPU time of this process, so other load on the machine affects them only through the caches. Medians and 99th
percentiles are shown, and the smallest of several rounds if one figure stands for a loop.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from gateway.app import Application
from gateway.config.loading import parse_config
from gateway.pipeline.call import Call, Principal
from gateway.runs.plan import RunRequest
from gateway.tags import Tags
from gateway.wire.protocols import PROTOCOLS
from policies.allocation import StepDemand, allocate
from policies.classify import StepText, classify
from policies.intents import Intent
from policies.pressure import Rung
from policies.settings import ALLOCATION_STRATEGIES, Settings

SENTENCES: Final = Path(__file__).parent / "intents" / "heldout.jsonl"
STEPS: Final = 50
ROUNDS: Final = 5
CONFIG: Final = """
model_list:
  - model_name: mock
    litellm_params: {{model: openai/mock, mock_response: "one two three"}}
    model_info: {{input_cost_per_token: 1.0e-6, output_cost_per_token: 4.0e-6, max_output_tokens: 2000}}
budgets:
  - {{scope: run, match: "*", tokens: 100000000}}
storage: {{ledger: "memory://", store: "sqlite:///{folder}/store.db", spool: "{folder}/spool.jsonl"}}
settings: {{orchestration_enabled: true, orchestration_compression_enabled: true, orchestration_ais_routing_enabled: true}}
"""


@dataclass(frozen=True, slots=True)
class Figure:
    """Milliseconds of CPU. `limit_ms` is what the 99th percentile (or the only figure) has to stay below."""

    what: str
    median_ms: float
    p99_ms: float
    limit_ms: float

    @property
    def holds(self) -> bool:
        return self.p99_ms < self.limit_ms


def spent_ms(work: Callable[[], object]) -> float:
    began_ns = time.process_time_ns()
    work()
    return (time.process_time_ns() - began_ns) / 1e6


def figure(title: str, limit_ms: float, samples: Sequence[float]) -> Figure:
    ranked = sorted(samples)
    return Figure(title, statistics.median(ranked), ranked[min(len(ranked) - 1, int(0.99 * len(ranked)))], limit_ms)


def classification() -> list[Figure]:
    """Every held-out sentence, by the source of its answer: the smallest of five rounds, since a text is always the same work."""
    by_source: dict[str, list[float]] = {"rules": [], "model": []}
    for line in SENTENCES.read_text().splitlines():
        step = step_of(json.loads(line))
        source = classify(step).source
        if source in by_source:
            by_source[source].append(min(spent_ms(lambda: classify(step)) for _ in range(ROUNDS)))  # noqa: B023
    return [
        figure(f"an intent, classified by the rules ({len(by_source['rules'])} texts)", 1.0, by_source["rules"]),
        figure(f"an intent, classified by the model ({len(by_source['model'])} texts)", 2.0, by_source["model"]),
    ]


def step_of(row: dict[str, Any]) -> StepText:
    shape = row.get("response_format")
    return StepText(row.get("step"), None, row.get("system"), row["prompt"], tuple(row.get("tools") or ()), shape)


def allocation() -> list[Figure]:
    intents, priorities = tuple(Intent), ("low", "normal", "high", "critical")
    steps = [StepDemand(f"step-{n}", intents[n % 10], priorities[n % 4]) for n in range(STEPS)]
    settings = Settings.from_values()

    def plan(strategy: str) -> Callable[[], object]:
        return lambda: allocate(steps, strategy=strategy, settings=settings)

    return [
        figure(f"{STEPS} steps allocated, {name}", 1.0, [spent_ms(plan(name)) for _ in range(200)])
        for name in ALLOCATION_STRATEGIES
    ]


def call_of(run: str, step: str) -> Call:
    system = "You are a careful writer of letters to customers. " * 20
    messages = [{"role": "system", "content": system}, {"role": "user", "content": "Write the letter. " * 50}]
    protocol = PROTOCOLS["/v1/chat/completions"]
    request = protocol.parse(orjson.dumps({"model": "mock", "messages": messages, "max_tokens": 100}))
    return Call("c", protocol, Principal("", "k", "default"), request, Tags("letters", run, step, "ada"), run)


async def calls(folder: Path, count: int) -> list[Figure]:
    """What admission asks of the orchestration: for calls of known steps, and for the first call of new runs."""
    application = Application(parse_config(CONFIG.format(folder=folder), environ={}), environment={})
    await application.start()
    orchestration, control = application.parts.orchestration, application.parts.control

    async def decide(call: Call) -> None:
        await orchestration.plan(call, control.snapshot)
        orchestration.model_for(call, control.snapshot)
        orchestration.skip_reason(call, Rung.COMPRESS)

    async def spent(call: Call) -> float:
        began_ns = time.process_time_ns()
        await decide(call)
        return (time.process_time_ns() - began_ns) / 1e6

    try:
        await declare(application)
        names = [f"step-{number}" for number in range(STEPS)]
        for name in names:
            await decide(call_of("warm", name))
        warm = [await spent(call_of("warm", names[number % STEPS])) for number in range(count)]
        plans = [await planned(application, number) for number in range(min(500, count))]
        cold = [await spent(call_of(f"cold-{number}", names[0])) for number in range(min(200, count))]
    finally:
        await application.stop()
    return [
        figure("all of it, on a call of a known step", 0.3, warm),
        figure(f"a run of {STEPS} declared steps planned", 5.0, plans),
        figure("all of it, on the first call of such a run, including what is written in the background", 100.0, cold),
    ]


async def planned(application: Application, number: int) -> float:
    request = RunRequest(f"planned-{number}", "letters")
    began_ns = time.process_time_ns()
    await application.parts.orchestration.propose("default", request)
    return (time.process_time_ns() - began_ns) / 1e6


async def declare(application: Application) -> None:
    from gateway.store import workflows

    prompts = [json.loads(line)["prompt"] for line in SENTENCES.read_text().splitlines()[:STEPS]]
    steps = [{"id": f"step-{number}", "prompt": prompt} for number, prompt in enumerate(prompts)]
    declared = workflows.Workflow("default", "letters", "", {"steps": steps, "routing": True}, 0, "bench")
    await application.parts.control.change(workflows.put(application.parts.store, declared))


def document(figures: Sequence[Figure]) -> str:
    lines = [
        "# The cost of orchestration",
        "",
        "What classification, allocation and routing add to a call, in CPU milliseconds (`.venv/bin/python -m bench.orchestration`, "
        f"{platform.machine()}, CPython {platform.python_version()}). `make bench` measures whole calls.",
        "",
        "| what | median | p99 | must stay below |",
        "|---|---:|---:|---:|",
        *(f"| {line.what} | {line.median_ms:.3f} | {line.p99_ms:.3f} | {line.limit_ms:g} |" for line in figures),
        "",
        "*All of it* is the intent, the step's share of the run, the model, and whether the prompt may be compressed, for a prompt of "
        "900 characters after a system prompt of 1,000, with the ledger in memory and the store in SQLite. The first call of a run "
        "reads the store once and allocates the tokens of all steps. Most of its last figure is writing that in the background, for "
        "which no call waits. Compression runs in a thread and is measured by `make eval-compression`.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--calls", type=int, default=5_000)
    arguments.add_argument("--document", type=Path)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="farebox-bench-") as folder:
        figures = [*classification(), *allocation(), *asyncio.run(calls(Path(folder), options.calls))]
    for line in figures:
        verdict = "" if line.holds else "  TOO SLOW"
        print(
            f"{line.what:70} median {line.median_ms:7.3f} ms   p99 {line.p99_ms:7.3f} ms   < {line.limit_ms:g}{verdict}"
        )
    if options.document:
        options.document.write_text(document(figures))
    if not all(line.holds for line in figures):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
