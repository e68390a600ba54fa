"""Random operations on an engine and on the pure book: every answer and all visible state are equal after each step.

The engine's clock may run on with real time while the book's stands still. All durations below are odd multiples of half a
minute and the clock is moved by whole minutes, so that no difference of some seconds decides anything.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from gateway.ledger.port import EntryKind, Ledger, LedgerError, OutboxEntry, Progress, Reserve
from policies.amounts import UNLIMITED, Amount, Limit
from policies.book import Book, DictStorage
from policies.reservation import Demand, Gate, Granted, Hold, OnLost, Refused
from tests.contracts.engines import ENGINES, START_MS, Engine
from tests.contracts.ledger_calls import MINUTE_MS

R = TypeVar("R")
HALF_MS = MINUTE_MS // 2
ALL = 10_000

projects = st.sampled_from(["p", "q"])
ids = st.sampled_from([f"c{n}" for n in range(12)])
names = ("step:a", "step:b", "run:r", "workflow:w", "key:k")
counts = st.sampled_from([0, 1, 2, 7, 20, 60])
amounts = st.builds(Amount, counts, counts, st.integers(0, 2))
progresses = st.builds(Progress, ids, amounts, st.none() | st.sampled_from(OnLost))
limits = st.builds(Limit, *[st.none() | st.sampled_from([0, 5, 40, 100, 300])] * 2, st.none() | st.integers(0, 9))
durations = st.sampled_from([1, 3, 5, 21]).map(lambda odd: odd * HALF_MS)
keeps = st.sampled_from([3, 241]).map(lambda odd: odd * HALF_MS)
holds = st.builds(
    Hold,
    st.just(""),
    limits,
    st.just(UNLIMITED) | limits,
    st.booleans() | st.just(True),
    keeps,
)
# Mostly the usual chain: only a few reservations at a time, on accounts that meet again.
chains = st.sampled_from([(0, 2, 3, 4), (1, 2, 3, 4), (2, 4), (4,)]).flatmap(
    lambda picked: st.tuples(*[holds.map(lambda hold, n=n: replace(hold, account=names[n])) for n in picked])  # type: ignore[misc]
)


@st.composite
def demands(draw: st.DrawFn, *, extra: bool = False) -> Demand:
    most = draw(counts)
    least = draw(st.just(most) | st.integers(0, most))
    prompt, prompt_nano_usd, requests = (draw(counts), draw(counts), 0 if extra else 1)
    return Demand(prompt, most, least, prompt_nano_usd, draw(st.integers(0, 2)), draw(st.integers(1, 2)), requests)


class LedgerMachine(RuleBasedStateMachine):
    engine: ClassVar[Engine]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.book = Book(DictStorage())
        self.now_ms = START_MS
        self.recorded = 0
        self.chains: dict[tuple[str, str], tuple[Hold, ...]] = {}
        self.read: list[tuple[OutboxEntry, OutboxEntry]] = []

    @initialize()
    def opened(self) -> None:
        folder = self.stack.enter_context(tempfile.TemporaryDirectory())
        self.tested = self.run(self.stack.enter_async_context(type(self).engine(Path(folder))))
        self.ledger: Ledger = self.tested.ledger

    def teardown(self) -> None:
        self.run(self.stack.aclose())
        self.runner.close()

    def run(self, waiting: Awaitable[R]) -> R:
        async def wait() -> R:
            return await waiting

        return self.runner.run(wait())

    def check_same(self, name: str, *arguments: Any, key: Callable[[Any], Any] = lambda value: value) -> None:
        """Both perform the operation, and their answers differ only in times."""
        assert key(self.ask_engine(name, *arguments)) == key(self.ask_book(name, *arguments))

    def ask_engine(self, name: str, *arguments: Any) -> Any:
        try:
            return without_times(self.run(getattr(self.ledger, name)(*arguments)))
        except LedgerError:
            return "error"

    def ask_book(self, name: str, *arguments: Any) -> Any:
        try:
            return without_times(getattr(self.book, name)(*arguments, self.now_ms))
        except ValueError:
            return "error"

    @rule(
        project=projects, name=ids, chain=chains, demand=demands(), ttl_ms=durations, on_lost=st.sampled_from(OnLost),
        draft=st.binary(max_size=8),
    )  # fmt: skip
    def reserve(
        self,
        project: str,
        name: str,
        chain: tuple[Hold, ...],
        demand: Demand,
        ttl_ms: int,
        on_lost: OnLost,
        draft: bytes,
    ) -> None:
        self.chains.setdefault((project, name), chain)
        self.check_same("reserve", project, Reserve(name, "gw", chain, demand, ttl_ms, draft, on_lost))

    @rule(project=projects, name=ids, new_limits=st.lists(limits, min_size=4, max_size=4), extra=demands(extra=True))
    def extend(self, project: str, name: str, new_limits: list[Limit], extra: Demand) -> None:
        chain = self.chains.get((project, name), (Hold("key:k"),))
        now = [replace(hold, limit=limit) for hold, limit in zip(chain, new_limits, strict=False)]
        self.check_same("extend", project, name, now, extra)

    @rule(project=projects, reports=st.lists(progresses, max_size=3), ttl_ms=durations)
    def renew(self, project: str, reports: list[Progress], ttl_ms: int) -> None:
        once = list({report.id: report for report in reports}.values())
        self.check_same("renew", project, once, ttl_ms)

    @rule(project=projects, name=ids, used=amounts, detail=st.binary(max_size=8))
    def settle(self, project: str, name: str, used: Amount, detail: bytes) -> None:
        self.check_same("settle", project, name, used, detail)

    @rule(project=projects, name=ids)
    def void(self, project: str, name: str) -> None:
        self.check_same("void", project, name)

    @rule(minutes=st.sampled_from([1, 1, 2, 10, 59, 60, 200]))
    def wait(self, minutes: int) -> None:
        self.advance_and_sweep(minutes)

    def advance_and_sweep(self, minutes: int) -> None:
        """Sweep and purge at once, because engines may do both earlier or later."""
        self.now_ms += minutes * MINUTE_MS
        self.run(self.tested.advance(minutes * MINUTE_MS))
        self.check_same("expire_due", ALL, key=sorted_by_id)
        self.run(self.ledger.purge(ALL))
        self.book.purge(ALL, self.now_ms)

    @rule(project=projects, amount=amounts, kind=st.sampled_from([EntryKind.RECORDED, EntryKind.REPAIR]))
    def record(self, project: str, amount: Amount, kind: EntryKind) -> None:
        self.recorded += 1
        entry = OutboxEntry("", f"u{self.recorded}", kind, project, amount, 0, b"{}", b"[]", Amount(1))
        self.check_same("record", project, [entry])

    @rule(project=projects, account=st.sampled_from(names), limit=st.just(UNLIMITED) | limits)
    def set_override(self, project: str, account: str, limit: Limit) -> None:
        self.check_same("set_override", project, account, limit)

    @rule(project=projects, account=st.sampled_from(names), gate=st.just(Gate.OPEN) | st.sampled_from(Gate))
    def set_gate(self, project: str, account: str, gate: Gate) -> None:
        self.check_same("set_gate", project, account, gate)

    @rule(
        project=projects,
        account=st.sampled_from(names),
        settled=amounts,
        keep_ms=keeps,
        gate=st.none() | st.sampled_from(Gate),
        override=st.none() | limits,
    )
    def restore(
        self, project: str, account: str, settled: Amount, keep_ms: int, gate: Gate | None, override: Limit | None
    ) -> None:
        self.check_same("restore", project, account, settled, keep_ms, gate, override)

    @rule(project=projects, workflow=st.sampled_from(["w", "v"]), run=ids, silence_ms=durations)
    def current_run(self, project: str, workflow: str, run: str, silence_ms: int) -> None:
        self.check_same("current_run", project, workflow, run, silence_ms)

    @rule(consumer=st.sampled_from(["one", "two"]))
    def outbox_read(self, consumer: str) -> None:
        from_engine = sorted_by_id(self.run(self.ledger.outbox_read(consumer, ALL)))
        from_book = sorted_by_id(self.book.outbox_read(consumer, ALL, self.now_ms))
        assert without_times(from_engine) == without_times(from_book)
        self.read = list(zip(from_engine, from_book, strict=True))

    @rule(share=st.sampled_from([1, 2]))
    def outbox_acknowledge(self, share: int) -> None:
        done, self.read = self.read[::share], []
        self.run(self.ledger.outbox_acknowledge([entry for entry, _ in done]))
        self.book.outbox_acknowledge([entry for _, entry in done], self.now_ms)

    @rule(one_in_four=st.integers(0, 3))
    def reopen(self, one_in_four: int) -> None:
        """A restart may or may not forget the claims on outbox entries: a minute later they have expired anyway."""
        if self.tested.is_durable and one_in_four == 3:
            self.run(self.ledger.close())
            self.run(self.ledger.open())
            self.advance_and_sweep(1)

    @invariant()
    def visible_state_is_equal(self) -> None:
        if not hasattr(self, "ledger"):
            return
        for project in ("p", "q"):
            self.check_same("balances", project, names)
            self.check_same("pending", project, ALL, key=lambda rows: sorted(row[:3] for row in rows))
        self.check_same("outbox_size")


def without_times(answer: Any) -> Any:
    """The answer without the times of two clocks that are some seconds apart, and without engines' own positions."""
    if isinstance(answer, Granted):
        return replace(answer, now_ms=0, deadline_ms=0)
    if isinstance(answer, Refused):
        return replace(answer, now_ms=0)
    if isinstance(answer, OutboxEntry):
        return replace(answer, at_ms=0, position="")
    if isinstance(answer, list | tuple):
        return tuple(without_times(item) for item in answer)
    return answer


def sorted_by_id(items: Sequence[Any]) -> list[Any]:
    """Engines may order entries of different projects, and of equal deadlines, as they like."""
    return sorted(items, key=lambda item: (item.project, item.id))


@pytest.mark.parametrize("name", ENGINES)
def test_random_operations_give_the_same_results_on_engine_and_book(name: str) -> None:
    machine = type("LedgerMachine", (LedgerMachine,), {"engine": staticmethod(ENGINES[name])})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
