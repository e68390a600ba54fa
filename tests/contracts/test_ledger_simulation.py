"""Several gateways, sweepers and flushers on one ledger, while messages are delayed, lost, duplicated and reordered, and processes killed.

Time is simulated and randomness is seeded: a seed that fails always fails. The simulation keeps its own account of every
reservation, from the answers alone, and compares the ledger with it after every message (I1, I2) and in the end: when the
faults have stopped, everything is resolved, and the store has exactly what the accounts say.

`FAREBOX_SIMULATION_SEEDS=1000 pytest tests/contracts/test_ledger_simulation.py` runs more than the two of every commit.
"""

from __future__ import annotations

import heapq
import os
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import pytest

from policies.amounts import ZERO, Amount, Limit
from policies.book import Book, DictStorage
from policies.reservation import Demand, Granted, Hold, OnLost, Progress, Refused, Reserve, State
from policies.settlement import ExpiredReservation, OutboxEntry, Resolution

R = TypeVar("R")
Action = Callable[[], None]

SEEDS = range(int(os.environ.get("FAREBOX_SIMULATION_SEEDS", "2")))
STEPS = 100_000
GATEWAYS = 5
TTL_MS = 60_000
HEARTBEAT_MS = 15_000
RESEND_MS = 150
QUIET_PERIOD_MS = 10 * 60_000  # so long after the last fault everything has to be resolved and stored
PROJECT = "p"
# Large enough to be used up only towards the end, except the second: refusals are the least interesting operations.
LIMITS = {"step:a": 3_000_000, "step:b": 2_000, "run:r": 2_200_000, "workflow:w": 4_000_000}


class World:
    """Simulated time, processes that die, and messages."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.now_ms = 0
        self.faults = True
        self.lives = [0] * GATEWAYS  # counts the deaths of each process: what an earlier life planned does not happen
        self._plan: list[tuple[int, int, Action]] = []
        self._sequence = 0

    def later(self, delay_ms: int, action: Action) -> None:
        self._sequence += 1
        heapq.heappush(self._plan, (self.now_ms + delay_ms, self._sequence, action))

    def run(self) -> None:
        """Until nothing is planned any more."""
        while self._plan:
            self.now_ms, _, action = heapq.heappop(self._plan)
            action()

    def happens(self, probability: float) -> bool:
        return self.faults and self.chance.random() < probability

    def delay_ms(self) -> int:
        """Mostly some ms; now and then a partition, and the message arrives long after."""
        return self.chance.randrange(2 * TTL_MS) if self.happens(0.03) else self.chance.randrange(1, 5)

    def alive(self, process: int, action: Action) -> Action:
        life = self.lives[process]

        def unless_dead() -> None:
            if self.lives[process] == life:
                action()

        return unless_dead

    def ask(self, process: int, operation: Callable[[], R], answered: Callable[[R], None]) -> None:
        """Send an operation until it is answered. Requests and answers are delayed, lost and duplicated; ids make that harmless."""
        done = False

        def receive(answer: R) -> None:
            nonlocal done
            if not done:
                done = True
                answered(answer)

        def arrive() -> None:
            answer = operation()
            if not self.happens(0.05):
                self.later(self.delay_ms(), self.alive(process, lambda: receive(answer)))

        def send() -> None:
            if done:
                return
            for _ in range(2 if self.happens(0.05) else 1):
                if not self.happens(0.05):
                    self.later(self.delay_ms(), arrive)  # a message on its way arrives even if its sender has died
            self.later(RESEND_MS, self.alive(process, send))

        send()


@dataclass
class ExpectedState:
    """The state according to the answers: who holds what, how each reservation was resolved, and the resulting accounts (in tokens)."""

    accounts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    booked: dict[str, int] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    settled_sums: Counter[str] = field(default_factory=Counter)
    reserved_sums: Counter[str] = field(default_factory=Counter)

    def record_hold(self, name: str, accounts: tuple[str, ...], tokens: int) -> None:
        more = tokens - self.held.get(name, 0)
        self.accounts[name], self.held[name] = accounts, tokens
        self.reserved_sums.update(dict.fromkeys(accounts, more))

    def record_resolution(self, name: str, tokens: int, *, late: bool = False) -> None:
        assert (name in self.lost) if late else (name in self.held), f"{name} was resolved twice"
        self.lost.discard(name)
        accounts, freed = self.accounts[name], self.held.pop(name, 0)
        difference = tokens - self.booked.get(name, 0)
        self.booked[name] = tokens
        self.reserved_sums.update(dict.fromkeys(accounts, -freed))
        self.settled_sums.update(dict.fromkeys(accounts, difference))


class Ledger:
    """The book as a server: every operation is checked against the expected state when it happens."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.storage = DictStorage()
        self.book = Book(self.storage)
        self.expected = ExpectedState()
        self.steps = 0
        self.counts: Counter[str] = Counter()

    def reserve(self, request: Reserve) -> Granted | Refused:
        known = request.id in self.expected.accounts
        answer = self.book.reserve(PROJECT, request, self.world.now_ms)
        if isinstance(answer, Granted) and not known:
            self.expected.record_hold(request.id, tuple(hold.account for hold in request.holds), answer.held.tokens)
            # A demand of nothing is granted even where an overrun has passed the limit: it takes nothing.
            if answer.held.tokens:
                self._check_limits(request.holds)
        assert not known or isinstance(answer, Granted)
        self._check_accounts("reserve")
        return answer

    def extend(self, name: str, holds: Sequence[Hold], extra: Demand) -> Granted | Refused:
        answer = self.book.extend(PROJECT, name, holds, extra, self.world.now_ms)
        if isinstance(answer, Granted):
            self.expected.record_hold(name, self.expected.accounts[name], answer.held.tokens)
            self._check_limits(holds)
        self._check_accounts("extend")
        return answer

    def renew(self, progress: Progress) -> tuple[str, ...]:
        gone = self.book.renew(PROJECT, [progress], TTL_MS, self.world.now_ms)
        assert (progress.id in self.expected.held) == (gone == ())
        self._check_accounts("renew")
        return gone

    def settle(self, name: str, used: int) -> Resolution:
        return self._check_resolution(name, self.book.settle(PROJECT, name, Amount(used), b"{}", self.world.now_ms))

    def void(self, name: str) -> Resolution:
        return self._check_resolution(name, self.book.void(PROJECT, name, self.world.now_ms))

    def sweep(self) -> tuple[ExpiredReservation, ...]:
        lost = self.book.expire_due(50, self.world.now_ms)
        for expired in lost:
            self.expected.record_resolution(expired.id, expired.booked.tokens)
            self.expected.lost.add(expired.id)
            self.counts["lost"] += 1
        self.book.purge(50, self.world.now_ms)
        self._check_accounts("sweep")
        return lost

    def _check_resolution(self, name: str, resolution: Resolution) -> Resolution:
        if resolution.first:
            self.expected.record_resolution(name, resolution.booked.tokens, late=resolution.state is State.LATE)
        elif resolution.state is not None:
            assert resolution.booked.tokens == self.expected.booked[name]
        self._check_accounts(str(resolution.state))
        return resolution

    def _check_limits(self, holds: Sequence[Hold]) -> None:
        for hold in holds:
            standing = self.expected.settled_sums[hold.account] + self.expected.reserved_sums[hold.account]
            assert standing <= LIMITS[hold.account], f"{hold.account} was granted beyond its limit"

    def _check_accounts(self, operation: str) -> None:
        self.steps += 1
        self.counts[operation] += 1
        for name in LIMITS:
            account = self.storage.account(PROJECT, name)
            stands = (account.settled.tokens, account.reserved.tokens) if account else (0, 0)
            assert stands == (self.expected.settled_sums[name], self.expected.reserved_sums[name])


class Simulation:
    """Gateways that make calls, sweep and flush."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed)
        self.ledger = Ledger(self.world)
        self.store: dict[str, OutboxEntry] = {}
        self.calls = 0
        self.ended_ms = 0
        for process in range(GATEWAYS):
            self._start(process)

    @property
    def is_quiet(self) -> bool:
        return not self.world.faults

    def _start(self, process: int) -> None:
        self._repeat(process, lambda: self._call(process), 400)
        self._repeat(process, lambda: self.world.ask(process, self.ledger.sweep, lambda _: None), 5_000)
        self._repeat(process, lambda: self._flush(process), 1_000)
        self.world.later(self.world.chance.randrange(1, 400_000), self.world.alive(process, lambda: self._die(process)))

    def _repeat(self, process: int, action: Action, every_ms: int) -> None:
        def act() -> None:
            self._end_of_faults()
            if self.is_quiet and self.world.now_ms > self.ended_ms + QUIET_PERIOD_MS:
                return
            action()
            self.world.later(self.world.chance.randrange(1, 2 * every_ms), self.world.alive(process, act))

        act()

    def _end_of_faults(self) -> None:
        if self.ledger.steps >= STEPS and not self.is_quiet:
            self.world.faults, self.ended_ms = False, self.world.now_ms

    def _die(self, process: int) -> None:
        if not self.is_quiet:
            self.world.lives[process] += 1
            self._start(process)

    def _call(self, process: int) -> None:
        if self.is_quiet:
            return
        self.calls += 1
        chance, name = self.world.chance, f"c{self.calls}"
        chain = tuple(
            Hold(account, Limit(LIMITS[account]))
            for account in (chance.choice(("step:a", "step:b")), "run:r", "workflow:w")
        )
        most = chance.randrange(1, 400)
        demand = Demand(chance.randrange(50), most, chance.randrange(most + 1), requests=0)
        request = Reserve(name, f"gw-{process}", chain, demand, TTL_MS, b"{}", chance.choice(list(OnLost)))
        self.world.ask(
            process,
            lambda: self.ledger.reserve(request),
            lambda answer: self._forward(process, chain, answer),
        )

    def _forward(self, process: int, chain: tuple[Hold, ...], answer: Granted | Refused) -> None:
        if isinstance(answer, Refused):
            return
        name, held, chance = answer.reservation_id, answer.held.tokens, self.world.chance
        if chance.random() < 0.1:
            self.world.ask(process, lambda: self.ledger.void(name), lambda _: None)
            return
        took_ms = chance.choice((50, 800, 2 * TTL_MS, 3 * TTL_MS))
        used = held + chance.randrange(1, 50) if chance.random() < 0.03 else chance.randrange(held + 1)
        end_ms = self.world.now_ms + took_ms
        self._send_heartbeats(process, name, used, end_ms)
        if chance.random() < 0.1:
            extra = Demand(0, 40, 1, requests=0)
            self.world.ask(process, lambda: self.ledger.extend(name, chain, extra), lambda _: None)
        self.world.later(
            took_ms,
            self.world.alive(
                process, lambda: self.world.ask(process, lambda: self.ledger.settle(name, used), lambda _: None)
            ),
        )

    def _send_heartbeats(self, process: int, name: str, used: int, end_ms: int) -> None:
        """Heartbeats report the progress of the answer. Some calls stop sending them and come back: their hold has been swept."""
        silent = self.world.happens(0.2)

        def beat() -> None:
            if self.world.now_ms >= end_ms:
                return
            if not silent and not self.world.happens(0.1):
                progress = Progress(name, Amount(used // 2))
                self.world.ask(process, lambda: self.ledger.renew(progress), lambda _: None)
            self.world.later(HEARTBEAT_MS, self.world.alive(process, beat))

        beat()

    def _flush(self, process: int) -> None:
        book, consumer = self.ledger.book, f"flusher-{process}"

        def stored(entries: tuple[OutboxEntry, ...]) -> None:
            for entry in entries:
                before = self.store.setdefault(entry.id, entry)
                assert (before.amount, before.kind) == (entry.amount, entry.kind), "one id, two events"
            if entries and self.world.happens(0.02):
                self._die(process)  # after the commit, before the acknowledgement
            elif entries:
                self.world.ask(process, lambda: book.outbox_acknowledge(entries, self.world.now_ms), lambda _: None)

        self.world.ask(process, lambda: book.outbox_read(consumer, 100, self.world.now_ms), stored)


@pytest.mark.parametrize("seed", SEEDS)
def test_simulated_faults_keep_the_sums_and_resolve_every_reservation(seed: int) -> None:
    simulation = Simulation(seed)
    simulation.world.run()
    ledger, expected = simulation.ledger, simulation.ledger.expected
    assert ledger.steps >= STEPS
    assert not expected.held
    assert ledger.book.outbox_size(0) == 0
    in_store: Counter[str] = Counter()
    for entry in simulation.store.values():
        in_store[entry.id.partition(":")[0]] += entry.amount.tokens
    assert {name: tokens for name, tokens in in_store.items() if tokens} == {
        name: tokens for name, tokens in expected.booked.items() if tokens
    }
    # The simulated faults did occur: each of these outcomes happened, and often.
    assert (
        min(
            ledger.counts[operation]
            for operation in ("reserve", "settled", "voided", "lost", "late", "extend", "renew")
        )
        > 5
    )
    assert sum(simulation.world.lives) > 5


def test_expiry_and_settlement_in_the_same_ms_book_the_usage_once() -> None:
    """In both orders, over every way a hold is lost, the sums are those of the usage."""
    for seed in range(10_000):
        chance = random.Random(seed)
        book = Book(DictStorage())
        hold, on_lost = Hold("run", Limit(1_000)), chance.choice(list(OnLost))
        book.reserve(PROJECT, Reserve("c", "gw", (hold,), Demand(0, 50, 50, requests=0), 100, b"{}", on_lost), 0)
        book.renew(PROJECT, [Progress("c", Amount(chance.randrange(70)))], 100, 0)
        used = chance.randrange(70)
        both: list[Callable[[], object]] = [
            lambda used=used, book=book: book.settle(PROJECT, "c", Amount(used), b"{}", 100),  # type: ignore[misc]
            lambda book=book: book.expire_due(10, 100),  # type: ignore[misc]
        ]
        chance.shuffle(both)
        for act in both:
            act()
        (balance,) = book.balances(PROJECT, ["run"], 100)
        assert (balance.settled, balance.reserved) == (Amount(used), ZERO)
        assert sum((entry.amount for entry in book.outbox_read("f", 10, 100)), ZERO) == Amount(used)
