"""A gateway as it looks after a month of use: for the pictures in docs/images, and for whoever works on the pages.

What is past is written through the store's own functions before the gateway starts; what is now are real calls of
workflows that run while somebody looks. Nothing of it is random from one time to the next but the clock.
"""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import orjson

from gateway.bookkeeping import reconcile
from gateway.config.schema import Config
from gateway.ledger.port import EntryKind, OutboxEntry
from gateway.ledger.sqlite import SqliteLedger
from gateway.store import intensity
from gateway.store.database import Database
from gateway.store.usage import insert_entries
from policies.amounts import Amount
from policies.intensity import CREATION, EXECUTION
from tests.farebox_process import FareboxProcess, running_farebox, tagged

ADMIN_KEY: Final = "an-admin-key-for-pictures"
PERSON: Final = {"name": "ada", "password": "a quiet long password", "role": "admin"}
DAYS: Final = 30
_DAY_MS: Final = 86_400_000
_BATCH: Final = 1_000

_LETTER: Final = (
    "Dear Ms. Okafor, thank you for waiting. Your parcel was held at the depot because the street number was missing; it is on "
    "its way again and will be with you tomorrow before noon. We have taken the delivery fee off your bill. If anything else is "
    "wrong, answer this letter and it reaches me directly. "
)
_MODELS: Final[Mapping[str, tuple[str, float, float, int, str]]] = {
    # name: (provider's model, USD per million tokens in, out, delay in ms, answer)
    "gpt-4.1": ("openai/gpt-4.1", 2.0, 8.0, 900, _LETTER * 4),
    "gpt-4.1-mini": ("openai/gpt-4.1-mini", 0.4, 1.6, 350, _LETTER),
    "claude-sonnet-4-5": ("anthropic/claude-sonnet-4-5", 3.0, 15.0, 1_100, _LETTER * 5),
    "claude-opus-4-5": ("anthropic/claude-opus-4-5", 5.0, 25.0, 25_000, _LETTER * 6),
    "claude-haiku-4-5": (
        "anthropic/claude-haiku-4-5",
        1.0,
        5.0,
        300,
        '{"number": "R-2207", "total": 184.20, "ok": true}',
    ),
}
CONFIG: Final[dict[str, Any]] = {
    "model_list": [
        {
            "model_name": name,
            "litellm_params": {"model": model, "mock_response": answer, "mock_delay_ms": delay_ms},
            "model_info": {
                "input_cost_per_token": input_price / 1e6,
                "output_cost_per_token": output_price / 1e6,
                "max_output_tokens": 8192,
            },
        }
        for name, (model, input_price, output_price, delay_ms, answer) in _MODELS.items()
    ],
    "tiers": {
        "fast": ["gpt-4.1-mini"],
        "balanced": ["claude-haiku-4-5"],
        "powerful": ["claude-sonnet-4-5", "gpt-4.1", "claude-opus-4-5"],
    },
    "settings": {
        "orchestration_enabled": True,
        "orchestration_compression_enabled": True,
        "orchestration_ais_routing_enabled": True,
    },
    "budgets": [
        {"scope": "run", "match": "*", "tokens": 30_000, "usd": 0.50},
        {"scope": "workflow", "match": "support-triage", "usd": 3, "window": "day"},
        {"scope": "workflow", "match": "nightly-report", "tokens": 6_000_000, "window": "month"},
        {"scope": "agent", "match": "scout", "tokens": 60_000, "window": "hour"},
        {"scope": "project", "match": "*", "usd": 80, "window": "month"},
    ],
}


@dataclass(frozen=True, slots=True)
class WorkflowScript:
    """A workflow: who runs it, how often a day, and its steps as (name, intent, prompt, model, tokens in, tokens out)."""

    name: str
    agent: str
    runs_a_day: float
    steps: tuple[tuple[str, str, str, str, int, int], ...]


WORKFLOWS: Final = (
    WorkflowScript(
        "support-triage",
        "triage-bot",
        34,
        (
            ("classify", "conditional", "Which of these is it: late, lost, broken, other?", "gpt-4.1-mini", 420, 12),
            ("extract", "extract", "Extract the order number and the date as JSON.", "gpt-4.1-mini", 810, 90),
            ("draft", "generate", "Write a friendly letter to the customer about the delay.", "gpt-4.1", 1_250, 620),
            ("check", "validate", "Does the letter satisfy the rules? Answer yes or no.", "claude-haiku-4-5", 900, 24),
        ),
    ),
    WorkflowScript(
        "nightly-report",
        "ledger-clerk",
        11,
        (
            (
                "collect",
                "aggregate",
                "Put the figures of all regions together in one table.",
                "gpt-4.1-mini",
                3_900,
                700,
            ),
            (
                "summarize",
                "summarize",
                "Summarize what changed since yesterday in five sentences.",
                "gpt-4.1",
                5_200,
                480,
            ),
            ("write", "generate", "Write the report for the board.", "claude-sonnet-4-5", 3_100, 1_450),
        ),
    ),
    WorkflowScript(
        "invoice-intake",
        "ledger-clerk",
        22,
        (
            (
                "read",
                "extract",
                "Extract number, date and total as JSON from this invoice.",
                "claude-haiku-4-5",
                1_900,
                160,
            ),
            ("match", "enrich", "Add the supplier's number to each line.", "gpt-4.1-mini", 1_100, 210),
            ("approve", "validate", "Check the total against the order.", "gpt-4.1-mini", 640, 18),
        ),
    ),
    WorkflowScript(
        "code-review",
        "reviewer",
        8,
        (
            ("plan", "filter", "Keep only the files that need a look.", "gpt-4.1-mini", 2_600, 140),
            ("review", "generate", "Review this change and name what is wrong.", "claude-sonnet-4-5", 6_400, 1_900),
        ),
    ),
    WorkflowScript(
        "lead-research",
        "scout",
        14,
        (
            ("search", "filter", "Keep the companies that fit the profile.", "gpt-4.1-mini", 2_200, 260),
            ("enrich", "enrich", "Add size, seat and industry of each company.", "gpt-4.1", 1_700, 540),
            ("mail", "send", "Send the list to the sales team.", "gpt-4.1-mini", 700, 60),
        ),
    ),
)


def past_entries(now_ms: int) -> Iterator[OutboxEntry]:
    """Calls of the last thirty days until an hour ago: fewer at night and at weekends, more every week."""
    chance = random.Random(7)
    for work in WORKFLOWS:
        day = now_ms - DAYS * _DAY_MS
        while day < now_ms:
            share = (1 - (now_ms - day) / _DAY_MS / DAYS * 0.5) * (0.4 if time.gmtime(day / 1000).tm_wday >= 5 else 1)
            for number in range(round(work.runs_a_day * share * chance.uniform(0.75, 1.25))):
                at_ms = day + int(chance.betavariate(4, 3) * _DAY_MS)
                if at_ms < now_ms - 3_600_000:
                    yield from _past_run(work, f"{_day(day)}-{number + 1:02}", at_ms, chance)
            day += _DAY_MS


def _day(at_ms: int) -> str:
    return time.strftime("%m%d", time.gmtime(at_ms / 1000))


def _past_run(work: WorkflowScript, number: str, at_ms: int, chance: random.Random) -> Iterator[OutboxEntry]:
    run = f"{work.name.partition('-')[0]}-{number}"
    for step, intent, _, model, input_tokens, output_tokens in work.steps:
        for _ in range(1 + (chance.random() < 0.25) * chance.randrange(1, 4)):
            at_ms += chance.randrange(900, 9_000)
            yield _past_call(work, run, step, intent, model, (input_tokens, output_tokens), at_ms, chance)


def _past_call(
    work: WorkflowScript,
    run: str,
    step: str,
    intent: str,
    model: str,
    size: tuple[int, int],
    at_ms: int,
    chance: random.Random,
) -> OutboxEntry:
    stretch = math.exp(chance.gauss(0, 0.35))
    input_tokens, output_tokens = int(size[0] * stretch), int(size[1] * math.exp(chance.gauss(0, 0.3)))
    luck = chance.random()
    actions, saved, saved_nano, used = [], 0, 0, model
    if input_tokens > 2_500 and luck < 0.4:
        saved = int(input_tokens * chance.uniform(0.25, 0.5))
        input_tokens -= saved
        actions.append(f"compress={saved}")
    if model in ("gpt-4.1", "claude-sonnet-4-5") and chance.random() < 0.3:
        used = "claude-haiku-4-5"
        actions.append(f"route={used}")
    if chance.random() < 0.07:
        actions.append("clamp")
    refused = chance.random() < 0.022
    failed = not refused and chance.random() < 0.012
    if refused or failed:
        input_tokens, output_tokens, saved, used = 0, 0, 0, model
        actions = []
    price_in, price_out = _MODELS[used][1], _MODELS[used][2]
    asked_in, asked_out = _MODELS[model][1], _MODELS[model][2]
    cost = int((input_tokens * price_in + output_tokens * price_out) * 1000)
    if used != model:
        saved_nano = int((input_tokens * asked_in + output_tokens * asked_out) * 1000) - cost
    draft = {
        "workflow": work.name, "run": run, "step": step, "agent": work.agent, "key_id": "", "protocol": "chat",
        "stream": intent == "generate", "model_requested": model, "model": used,
        "provider": _MODELS[used][0].partition("/")[0], "intent": intent, "intent_source": "rules",
        "intent_confidence": round(chance.uniform(0.82, 0.99), 2), "prompt_tokens_counted": input_tokens + saved,
    }  # fmt: skip
    code = chance.choice(
        ("step_budget_exceeded", "step_budget_exceeded", "run_budget_exceeded", "agent_budget_exceeded")
    )
    detail = {
        "status": "refused" if refused else "error" if failed else "ok",
        "code": code if refused else "upstream_500" if failed else "",
        "usage_source": "none" if refused or failed else "provider",
        "actions": ", ".join(actions), "saved_tokens": saved, "saved_nano_usd": max(0, saved_nano),
        "input_tokens": input_tokens, "output_tokens": output_tokens, "reserved_tokens": input_tokens + int(output_tokens * 1.8),
        "duration_ms": int(_MODELS[used][3] * chance.uniform(0.7, 2.4)), "overhead_us": int(chance.gauss(720, 160)),
    }  # fmt: skip
    amount = Amount(input_tokens + output_tokens, cost, 0 if refused or failed else 1)
    key = f"{chance.getrandbits(96):024x}"
    return OutboxEntry("", key, EntryKind.SETTLED, "default", amount, at_ms, orjson.dumps(draft), orjson.dumps(detail))


async def _write_past(folder: Path, now_ms: int) -> None:
    """Into the store, and into the ledger what a ledger is rebuilt from: so that both say the same."""
    store = Database(f"sqlite:///{folder / 'store.db'}")
    await store.open()
    await store.migrate(now_ms)
    entries = sorted(past_entries(now_ms), key=lambda entry: entry.at_ms)
    for start in range(0, len(entries), _BATCH):
        await insert_entries(store, entries[start : start + _BATCH], now_ms)
    ledger = SqliteLedger(folder / "ledger.db")
    await ledger.open()
    budgets = [budget.budget() for budget in Config.model_validate(CONFIG).budgets]
    await reconcile.rebuild(partial(ledger.restore, "default"), store, "default", await ledger.now_ms(), budgets)
    await ledger.close()
    for agent, creation, execution in (
        ("triage-bot", 3.4, 4.6),
        ("ledger-clerk", 5.1, 6.2),
        ("reviewer", 7.2, 7.9),
        ("scout", 4.0, 2.4),
    ):
        await _write_scores(store, agent, creation, execution, now_ms)
    await store.close()


async def _write_scores(store: Database, agent: str, creation: float, execution: float, now_ms: int) -> None:
    """A score that moved with the agent's work, measured every other day."""
    chance = random.Random(agent)
    for back in range(28, 0, -2):
        moved = execution + math.sin(back / 6) * 0.8 + chance.uniform(-0.25, 0.25)
        parts = {
            f"{side}.{group.name}": round(min(10.0, max(0.0, score + chance.uniform(-1.6, 1.6))), 2)
            for side, table, score in (("creation", CREATION, creation), ("execution", EXECUTION, moved))
            for group in table
        }
        await intensity.put(
            store,
            intensity.Intensity(
                "default",
                agent,
                creation,
                round(moved, 2),
                round(0.3 * creation + 0.7 * moved, 2),
                runs=(30 - back) * 9,
                metrics={"parts": parts},
                measured_at_ms=now_ms - back * _DAY_MS,
            ),
        )


class Traffic:
    """Runs of every workflow, one after another in a few threads, until `stop`. Bounded: a pause stands after every call."""

    def __init__(self, gateway: FareboxProcess, key: str) -> None:
        self._gateway = gateway
        self._key = key
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(work, at), daemon=True) for at, work in enumerate(WORKFLOWS)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(20)

    def _run(self, work: WorkflowScript, at: int) -> None:
        number = 0
        while not self._stopped.is_set():
            number += 1
            make_run(
                self._gateway,
                self._key,
                work,
                f"{work.name.partition('-')[0]}-{_day(time.time_ns() // 1_000_000)}-{90 + number}",
                self._stopped,
                at,
            )


def make_run(
    gateway: FareboxProcess,
    key: str,
    work: WorkflowScript,
    run: str,
    stopped: threading.Event | None = None,
    pause: int = 0,
) -> None:
    """A run of the workflow: each step once or a few times, with a prompt of about the size that the step has."""
    for step, _, prompt, model, input_tokens, output_tokens in work.steps:
        for _ in range(2 if pause % 2 else 1):
            if stopped is not None and stopped.wait(0.2 + 0.1 * pause):
                return
            call(
                gateway, key, tagged(work.name, run, step, agent=work.agent), model, prompt, input_tokens, output_tokens
            )


def call(
    gateway: FareboxProcess,
    key: str,
    tags: dict[str, str],
    model: str,
    prompt: str,
    input_tokens: int,
    output_tokens: int,
    **fields: Any,
) -> int:
    """The status of one call."""
    text = f"{prompt}\n\n" + "Order R-2207 of the north region came in with 184.20 on its bill. " * (input_tokens // 22)
    headers = {**tags, "authorization": f"Bearer {key}"}
    return gateway.chat(text, headers, model=model, max_tokens=max(40, output_tokens * 2), **fields).status


EVENTFUL_RUN: Final = "support-2207"


def eventful_run(gateway: FareboxProcess, key: str) -> threading.Thread:
    """One run in which everything happens: calls beside each other, one compressed, one clamped, one routed, one refused, and a
    slow one that is under way until the thread that is returned ends."""
    work = WORKFLOWS[0]

    def ask(step: str, model: str, prompt: str, input_tokens: int, output_tokens: int, **fields: Any) -> int:
        tags = tagged(work.name, EVENTFUL_RUN, step, agent=work.agent)
        options = fields.pop("options", None)
        return call(
            gateway,
            key,
            tags | ({"x-workflow-options": options} if options else {}),
            model,
            prompt,
            input_tokens,
            output_tokens,
            **fields,
        )

    def concurrently(*calls: tuple[Any, ...]) -> None:
        threads = [threading.Thread(target=ask, args=arguments, daemon=True) for arguments in calls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)

    write, check = work.steps[2][2], work.steps[3][2]
    ask("classify", "gpt-4.1-mini", work.steps[0][2], 420, 12)
    concurrently(*[("extract", "gpt-4.1-mini", work.steps[1][2], 500, 60) for _ in range(2)])
    concurrently(*[("draft", model, write, 600, 300) for model in ("gpt-4.1", "claude-sonnet-4-5", "auto:fast")])
    ask("check", "claude-haiku-4-5", check, 500, 24)
    ask("draft", "gpt-4.1", write, 3_400, 400)
    ask("draft", "gpt-4.1", "Write a book about it.", 300, 4_000, n=4, options="no-clamp")
    ask("draft", "gpt-4.1", write, 200, 4_000)
    ask("check", "claude-haiku-4-5", check, 400, 24)
    slow = threading.Thread(target=ask, args=("check", "claude-opus-4-5", check, 300, 300), daemon=True)
    slow.start()
    return slow


@contextmanager
def running_scene(folder: Path) -> Iterator[tuple[FareboxProcess, str]]:
    """The gateway, and the key with which its workflows call. Its pages ask for a login: `PERSON`."""
    engines = folder / ".farebox"
    engines.mkdir(parents=True, exist_ok=True)
    asyncio.run(_write_past(engines, time.time_ns() // 1_000_000))
    with running_farebox(folder, CONFIG, environment={"FAREBOX_ADMIN_KEY": ADMIN_KEY}) as gateway:
        yield gateway, _set_up(gateway)


def _set_up(gateway: FareboxProcess) -> str:
    admin = {"authorization": f"Bearer {ADMIN_KEY}"}
    keys = [
        gateway.request("POST", "/api/keys", body, admin).json()
        for body in (
            {"name": "agents-production", "limits": {"usd": 60, "window": "month"}},
            {"name": "ci", "limits": {"tokens": 2_000_000, "window": "day"}, "workflow": "code-review"},
            {"name": "grafana", "role": "viewer"},
        )
    ]
    for workflow, body in _DECLARED.items():
        assert gateway.request("PUT", f"/api/workflows/{workflow}", body, admin).status == 200
    for key, value in _SETTINGS.items():
        assert gateway.request("PUT", f"/api/settings/orchestration_{key}", {"value": value}, admin).status == 200
    return str(keys[0]["key"])


_SETTINGS: Final[Mapping[str, Any]] = {
    "max_tokens_per_step": 12_000,
    "max_tokens_per_workflow": 40_000,
    "token_budget_generate": 9_000,
    "token_budget_summarize": 7_000,
    "token_budget_aggregate": 6_000,
    "token_budget_filter": 3_500,
    "token_budget_extract": 2_500,
    "token_budget_enrich": 2_600,
    "compression_target_ratio": 0.6,
}
_DECLARED: Final[Mapping[str, Any]] = {
    "support-triage": {
        "description": "Reads a complaint, drafts an answer, checks it.",
        "agent": "triage-bot",
        "strategy": "adaptive",
        "budget": {"tokens": 12_000, "usd": 0.12},
        "on_pressure": ["compress", "route", "clamp", "refuse"],
        "steps": [
            {"id": "classify", "intent": "conditional"},
            {"id": "extract", "prompt": "Extract the order number and the date as JSON."},
            {"id": "draft", "prompt": "Write a friendly letter to the customer.", "priority": "high"},
            {"id": "check", "intent": "validate", "priority": "low"},
        ],
    },
    "nightly-report": {
        "mode": "observe",
        "steps": [
            {"id": "collect", "intent": "aggregate"},
            {"id": "summarize", "intent": "summarize"},
            {"id": "write", "intent": "generate"},
        ],
    },
}
