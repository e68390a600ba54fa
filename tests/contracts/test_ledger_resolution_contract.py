"""What every ledger engine promises about the end of reservations: settlement, expiry, the outbox, and what is kept or forgotten."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.ledger.port import EntryKind, Ledger, LedgerError, OutboxEntry, Progress
from policies.amounts import AMOUNT_MAX, ZERO, Amount, Limit
from policies.budgets import Budget, RunLimits, Scope, Subject, Window, chain_for
from policies.reservation import Balance, Demand, Gate, Granted, OnLost, Refusal, State
from tests.contracts.engines import LedgerUnderTest
from tests.contracts.ledger_calls import (
    MINUTE_MS,
    TOLERANCE_MS,
    hold,
    refused,
    request,
    stands_at,
    tokens,
)


class TestSettle:
    @pytest.mark.parametrize(
        ("used", "overrun"),
        [
            pytest.param(Amount(30, 300, 1), ZERO, id="less"),
            pytest.param(Amount(50, 500, 1), ZERO, id="all"),
            pytest.param(Amount(80, 400, 1), Amount(tokens=30), id="more"),
            pytest.param(ZERO, ZERO, id="nothing"),
        ],
    )
    async def test_books_what_was_used_and_frees_the_rest(self, ledger: Ledger, used: Amount, overrun: Amount) -> None:
        wanted = Demand(0, 50, 50, output_nano_usd_per_token=10)
        chain = [hold("step", 60), hold("run", 70)]
        await ledger.reserve("p", request("c1", chain, wanted))
        resolution = await ledger.settle("p", "c1", used, b'{"status":200}')
        assert (resolution.state, resolution.first) == (State.SETTLED, True)
        assert (resolution.booked, resolution.overrun) == (used, overrun)
        assert [one.account for one in resolution.balances] == ["step", "run"]
        assert all((one.settled, one.reserved) == (used, ZERO) for one in resolution.balances)
        assert [one.remaining("tokens") for one in resolution.balances] == [60 - used.tokens, 70 - used.tokens]
        (entry,) = await ledger.outbox_read("flusher")
        assert (entry.id, entry.kind, entry.project) == ("c1", EntryKind.SETTLED, "p")
        assert (entry.amount, entry.overrun) == (used, overrun)
        assert (entry.draft, entry.detail) == (b'{"model":"mock"}', b'{"status":200}')
        assert 0 <= await ledger.now_ms() - entry.at_ms <= TOLERANCE_MS

    async def test_a_hold_across_a_windows_end_is_booked_where_it_was_taken(self, ledger: Ledger) -> None:
        budget = Budget(Scope.KEY, Limit(tokens=100), window=Window.MINUTE)
        subject, midnight_ms = Subject("p", key="ci"), 20_000 * 86_400_000
        before, after = (
            list(chain_for(subject, [budget], RunLimits(), at_ms).holds) for at_ms in (midnight_ms - 1, midnight_ms)
        )
        assert isinstance(await ledger.reserve("p", request("c1", before, 80)), Granted)
        assert isinstance(await ledger.reserve("p", request("c2", after, 90)), Granted), "a new minute is whole"
        resolution = await ledger.settle("p", "c1", tokens(70), b"{}")
        assert [one.account for one in resolution.balances] == [one.account for one in before]
        await stands_at(ledger, before[-1].account, settled=70, reserved=0)
        await stands_at(ledger, after[-1].account, settled=0, reserved=90)

    async def test_the_first_resolution_stands(self, ledger: Ledger) -> None:
        for name, first, second in [("c1", "settle", "settle"), ("c2", "settle", "void"), ("c3", "void", "settle")]:
            await ledger.reserve("p", request(name, [hold(name, 100)], 60))
            for index, how in enumerate((first, second)):
                if how == "settle":
                    told = await ledger.settle("p", name, tokens(40 + index), b"{}")
                else:
                    told = await ledger.void("p", name)
                assert told.first is (index == 0)
                assert told.state is (State.SETTLED if first == "settle" else State.VOIDED)
                assert told.booked == (tokens(40) if first == "settle" else ZERO)
                assert told.balances == (Balance(name, Limit(tokens=100), told.booked, ZERO),)
        assert await ledger.outbox_size() == 2

    async def test_void_gives_all_back_and_tells_nobody(self, ledger: Ledger) -> None:
        await ledger.reserve("p", request("c1", [hold("run", 100)], 60))
        told = await ledger.void("p", "c1")
        assert (told.state, told.first, told.booked, told.overrun) == (State.VOIDED, True, ZERO, ZERO)
        await stands_at(ledger, "run", 0, 0)
        assert await ledger.outbox_size() == 0

    async def test_an_unknown_id_is_told_and_changes_nothing(self, ledger: Ledger) -> None:
        for told in (await ledger.void("p", "never"), await ledger.settle("p", "never", tokens(5), b"{}")):
            assert (told.state, told.first, told.booked, told.balances) == (None, False, ZERO, ())
        assert await ledger.outbox_size() == 0

    @pytest.mark.parametrize("used", [tokens(-1), Amount(nano_usd=AMOUNT_MAX + 1), Amount(tokens=1.5)])  # type: ignore[arg-type]
    async def test_impossible_amounts_are_errors(self, ledger: Ledger, used: Amount) -> None:
        await ledger.reserve("p", request("c1", [hold("run", 100)], 60))
        with pytest.raises(LedgerError):
            await ledger.settle("p", "c1", used, b"{}")
        await stands_at(ledger, "run", 0, 60)

    async def test_a_full_counter_stays_full(self, ledger: Ledger) -> None:
        """Booking never fails, even where the sum is beyond what an engine can keep."""
        await ledger.reserve("p", request("c1", [hold("run")], 60))
        await ledger.restore("p", "run", tokens(AMOUNT_MAX), MINUTE_MS)
        assert (await ledger.settle("p", "c1", tokens(60), b"{}")).booked == tokens(60)
        await stands_at(ledger, "run", AMOUNT_MAX, 0)

    async def test_draft_and_detail_come_back_byte_for_byte(self, ledger: Ledger) -> None:
        draft, detail = '{"step":"é\\u0000 \u2028"}'.encode(), bytes(range(256))
        await ledger.reserve("p", request("c1", [hold("run:ü/1", 100)], 6, draft=draft))
        await ledger.settle("p", "c1", tokens(6), detail)
        (entry,) = await ledger.outbox_read("flusher")
        assert (entry.draft, entry.detail) == (draft, detail)


class TestDeadlines:
    @pytest.mark.parametrize(
        ("on_lost", "progress", "booked"),
        [
            pytest.param(OnLost.CHARGE, Progress("c1"), 60, id="charged-whole"),
            pytest.param(OnLost.CHARGE, Progress("c1", tokens(25)), 60, id="however-far-it-was"),
            pytest.param(OnLost.CHARGE, Progress("c1", tokens(75)), 75, id="beyond-its-hold"),
            pytest.param(OnLost.CHARGE, Progress("c1", ZERO, OnLost.RELEASE), 0, id="its-owner-had-sent-nothing"),
            pytest.param(OnLost.RELEASE, Progress("c1", tokens(25)), 0, id="released"),
            pytest.param(OnLost.RELEASE, Progress("c1", ZERO, OnLost.CHARGE), 60, id="sent-after-all"),
        ],
    )
    async def test_the_sweeper_resolves_what_is_overdue(
        self, tested: LedgerUnderTest, on_lost: OnLost, progress: Progress, booked: int
    ) -> None:
        ledger = tested.ledger
        await ledger.reserve("p", request("c1", [hold("run", 100)], 60, on_lost=on_lost))
        await ledger.renew("p", [progress], MINUTE_MS)
        assert len(await ledger.expire_due()) == 0
        await tested.advance(MINUTE_MS)
        (lost,) = await ledger.expire_due()
        assert (lost.id, lost.project, lost.owner) == ("c1", "p", "gateway-1")
        assert (lost.booked, lost.released) == (tokens(booked), tokens(max(0, 60 - booked)))
        await stands_at(ledger, "run", booked, 0)
        (entry,) = await ledger.outbox_read("flusher")
        assert (entry.id, entry.kind, entry.amount) == ("c1:lost", EntryKind.EXPIRED, tokens(booked))
        assert (entry.draft, entry.overrun) == (b'{"model":"mock"}', tokens(max(0, booked - 60)))
        assert len(await ledger.expire_due()) == 0
        for first in (True, False):
            told = await ledger.void("p", "c1")
            assert (told.state, told.first, told.booked) == (State.LATE, first, ZERO), "nothing was spent after all"
        await stands_at(ledger, "run", 0, 0)
        *_, entry = await ledger.outbox_read("flusher")
        assert (entry.id, entry.kind, entry.amount) == ("c1:late", EntryKind.LATE, tokens(-booked))

    @pytest.mark.parametrize("used", [70, 25, 10, 0])
    async def test_a_late_settlement_books_the_difference_once(self, tested: LedgerUnderTest, used: int) -> None:
        ledger = tested.ledger
        await ledger.reserve("p", request("c1", [hold("run", 100)], 60))
        await ledger.renew("p", [Progress("c1", tokens(25))], MINUTE_MS)
        await tested.advance(MINUTE_MS)
        await ledger.expire_due()
        late = await ledger.settle("p", "c1", tokens(used), b'{"late":1}')
        assert (late.state, late.first, late.booked) == (State.LATE, True, tokens(used))
        assert late.overrun == tokens(max(0, used - 60))
        await stands_at(ledger, "run", used, 0)
        again = await ledger.settle("p", "c1", tokens(99), b"{}")
        assert (again.state, again.first, again.booked) == (State.LATE, False, tokens(used))
        assert not (await ledger.void("p", "c1")).first
        expired, entry = await ledger.outbox_read("flusher")
        assert (expired.id, entry.id, entry.kind) == ("c1:lost", "c1:late", EntryKind.LATE)
        assert (entry.amount, entry.overrun) == (tokens(used - 60), tokens(max(0, used - 60)))
        assert (entry.draft, entry.detail) == (b'{"model":"mock"}', b'{"late":1}')
        await stands_at(ledger, "run", used, 0)

    async def test_a_settlement_between_deadline_and_sweep_is_in_time(self, tested: LedgerUnderTest) -> None:
        await tested.ledger.reserve("p", request("c1", [hold("run", 100)], 60))
        await tested.advance(2 * MINUTE_MS)
        assert (await tested.ledger.settle("p", "c1", tokens(5), b"{}")).state is State.SETTLED
        assert len(await tested.ledger.expire_due()) == 0

    async def test_renewal_keeps_a_stream_of_ten_minutes(self, tested: LedgerUnderTest) -> None:
        ledger = tested.ledger
        await ledger.reserve("p", request("c1", [hold("run", 100)], 60))
        for minute in range(20):
            await tested.advance(MINUTE_MS // 2)
            assert await ledger.renew("p", [Progress("c1", tokens(minute))], MINUTE_MS) == ()
            assert len(await ledger.expire_due()) == 0
        ((name, owner, held, deadline_ms),) = await ledger.pending("p")
        assert (name, owner, held) == ("c1", "gateway-1", tokens(60))
        assert MINUTE_MS - TOLERANCE_MS <= deadline_ms - await ledger.now_ms() <= MINUTE_MS

    async def test_progress_never_goes_back(self, tested: LedgerUnderTest) -> None:
        ledger = tested.ledger
        await ledger.reserve("p", request("c1", [hold("run", 100)], 60))
        for seen in (Amount(90, 7, 0), Amount(20, 9, 0), ZERO):
            await ledger.renew("p", [Progress("c1", seen)], MINUTE_MS)
        await tested.advance(MINUTE_MS)
        (lost,) = await ledger.expire_due()
        assert lost.booked == Amount(90, 9, 0)

    async def test_what_an_owner_last_said_of_its_loss_counts(self, tested: LedgerUnderTest) -> None:
        ledger = tested.ledger
        for name in ("c1", "c2", "c3"):
            await ledger.reserve("p", request(name, [hold("run", 200)], 60))
        unsent = [Progress(name, ZERO, OnLost.RELEASE) for name in ("c1", "c2", "c3")]
        await ledger.renew("p", unsent, MINUTE_MS)
        await ledger.renew("p", [Progress("c1", ZERO, OnLost.CHARGE), Progress("c2")], MINUTE_MS)
        # Sent meanwhile, and then a message from before arrives.
        await ledger.renew("p", [Progress("c3", tokens(5), OnLost.CHARGE)], MINUTE_MS)
        await ledger.renew("p", unsent[2:], MINUTE_MS)
        await tested.advance(MINUTE_MS)
        lost = {one.id: one.booked for one in await ledger.expire_due()}
        assert lost == {"c1": tokens(60), "c2": ZERO, "c3": tokens(60)}
        await stands_at(ledger, "run", 120, 0)

    async def test_renewal_names_what_is_not_pending(self, tested: LedgerUnderTest) -> None:
        ledger = tested.ledger
        for name in ("c1", "c2", "c3"):
            await ledger.reserve("p", request(name, [hold("run", 100)], 10))
        await ledger.settle("p", "c1", tokens(1), b"{}")
        await ledger.void("p", "c3")
        gone = await ledger.renew("p", [Progress(name) for name in ("c1", "c2", "never", "c3")], MINUTE_MS)
        assert gone == ("c1", "never", "c3")

    async def test_an_overdue_reservation_can_be_renewed(self, tested: LedgerUnderTest) -> None:
        ledger = tested.ledger
        await ledger.reserve("p", request("c1", [hold("run", 100)], 10))
        await tested.advance(2 * MINUTE_MS)
        assert await ledger.renew("p", [Progress("c1")], MINUTE_MS) == ()
        assert len(await ledger.expire_due()) == 0

    async def test_sweeps_are_bounded_and_span_projects(self, tested: LedgerUnderTest) -> None:
        ledger = tested.ledger
        for project in ("p", "q"):
            for n in range(3):
                await ledger.reserve(project, request(f"c{n}", [hold("run", 100)], 10, ttl_ms=MINUTE_MS * (n + 1)))
        await tested.advance(2 * MINUTE_MS)
        first = await ledger.expire_due(limit=3)
        rest = await ledger.expire_due()
        assert len(first) == 3
        assert sorted((one.project, one.id) for one in [*first, *rest]) == [
            (project, name) for project in "pq" for name in ("c0", "c1")
        ]

    async def test_pending_tells_the_oldest_first(self, ledger: Ledger) -> None:
        for name, minutes in [("c1", 3), ("c2", 1), ("c3", 2)]:
            await ledger.reserve("p", request(name, [hold("run", 100)], 10, ttl_ms=minutes * MINUTE_MS))
        assert [row[0] for row in await ledger.pending("p")] == ["c2", "c3", "c1"]
        assert [row[0] for row in await ledger.pending("p", limit=2)] == ["c2", "c3"]
        assert len(await ledger.pending("q")) == 0


class TestOutbox:
    async def settled(self, ledger: Ledger, *names: str, project: str = "p") -> None:
        for name in names:
            await ledger.reserve(project, request(name, [hold("run")], 1))
            await ledger.settle(project, name, tokens(1), b"{}")

    async def test_keeps_entries_until_they_are_acknowledged(self, ledger: Ledger) -> None:
        await self.settled(ledger, "c1", "c2", "c3")
        first = await ledger.outbox_read("flusher", limit=2)
        assert [entry.id for entry in first] == ["c1", "c2"]
        assert [entry.id for entry in await ledger.outbox_read("flusher", limit=2)] == ["c1", "c2"]
        await ledger.outbox_acknowledge(first)
        assert [entry.id for entry in await ledger.outbox_read("flusher")] == ["c3"]
        assert await ledger.outbox_size() == 1
        await ledger.outbox_acknowledge(first)
        await ledger.outbox_acknowledge([replace(first[0], position="999999-0")])
        await ledger.outbox_acknowledge([])
        assert await ledger.outbox_size() == 1

    async def test_two_consumers_share_the_work(self, tested: LedgerUnderTest) -> None:
        ledger = tested.ledger
        await self.settled(ledger, "c1", "c2", "c3")
        mine = await ledger.outbox_read("one", limit=2)
        theirs = await ledger.outbox_read("two")
        assert ([entry.id for entry in mine], [entry.id for entry in theirs]) == (["c1", "c2"], ["c3"])
        await ledger.outbox_acknowledge(theirs)
        await tested.advance(31_000)
        assert [entry.id for entry in await ledger.outbox_read("two")] == ["c1", "c2"]
        await ledger.outbox_acknowledge(mine)
        assert await ledger.outbox_size() == 0

    async def test_gives_as_many_as_are_asked_for(self, ledger: Ledger) -> None:
        """More than one command of Redis takes as arguments."""
        entry = OutboxEntry("", "e", EntryKind.RECORDED, "p", tokens(1), 0, b"{}")
        await ledger.record("p", [replace(entry, id=f"e{number}") for number in range(2_500)])
        mine = await ledger.outbox_read("one", limit=2_100)
        theirs = await ledger.outbox_read("two", limit=2_100)
        assert [one.id for one in (*mine, *theirs)] == [f"e{number}" for number in range(2_500)]
        assert len(mine) == 2_100
        await ledger.outbox_acknowledge([*mine, *theirs])
        assert await ledger.outbox_size() == 0

    async def test_spans_projects(self, ledger: Ledger) -> None:
        await self.settled(ledger, "c1")
        await self.settled(ledger, "c2", project="q")
        entries = await ledger.outbox_read("flusher")
        assert sorted((entry.project, entry.id) for entry in entries) == [("p", "c1"), ("q", "c2")]
        await ledger.outbox_acknowledge(entries)
        assert await ledger.outbox_size() == 0

    async def test_records_what_no_reservation_stands_behind(self, ledger: Ledger) -> None:
        told = OutboxEntry("", "u1", EntryKind.RECORDED, "p", Amount(5, 6, 1), 0, b"{}", b'{"x":1}')
        repair = OutboxEntry("", "u2", EntryKind.REPAIR, "p", Amount(-5, 0, 0), 1_700_000_000_000, b"{}")
        await ledger.record("p", [told, repair])
        first, second = await ledger.outbox_read("flusher")
        assert first == replace(told, position=first.position, at_ms=first.at_ms)
        assert 0 <= await ledger.now_ms() - first.at_ms <= TOLERANCE_MS
        assert second == replace(repair, position=second.position)
        assert len({first.position, second.position, ""}) == 3


class TestUpkeep:
    async def test_restore_sets_what_is_settled_and_leaves_the_holds(self, ledger: Ledger) -> None:
        await ledger.reserve("p", request("c1", [hold("run", 100)], 10))
        await ledger.restore("p", "run", tokens(77), MINUTE_MS)
        await ledger.restore("p", "new", tokens(5), MINUTE_MS)
        await stands_at(ledger, "run", 77, 10)
        await stands_at(ledger, "new", 5, 0)
        refused(await ledger.reserve("p", request("c2", [hold("run", 100)], 14)))

    async def test_restore_sets_what_people_decided_and_leaves_what_it_is_not_told(self, ledger: Ledger) -> None:
        await ledger.restore("p", "run", tokens(7), MINUTE_MS, Gate.PAUSED, Limit(tokens=20))
        no = refused(await ledger.reserve("p", request("c1", [hold("run", 100)], 10)))
        assert (no.reason, no.balance.gate) == (Refusal.GATE, Gate.PAUSED)
        await ledger.set_gate("p", "run", Gate.OPEN)
        no = refused(await ledger.reserve("p", request("c1", [hold("run", 100)], 14)))
        assert (no.reason, no.balance.limit) == (Refusal.EXCEEDED, Limit(tokens=20))
        await ledger.restore("p", "run", tokens(8), MINUTE_MS)
        found = (await ledger.balances("p", ["run"]))[0]
        assert (found.gate, found.limit, found.settled) == (Gate.OPEN, Limit(tokens=20), tokens(8))

    async def test_purge_forgets_unused_accounts_without_holds(self, tested: LedgerUnderTest) -> None:
        ledger = tested.ledger
        day_ms = 24 * 60 * MINUTE_MS
        chain = [hold("short", 100, keep_ms=2 * day_ms), hold("long", 100, keep_ms=9 * day_ms)]
        await ledger.reserve("p", request("c1", chain, 10))
        await ledger.settle("p", "c1", tokens(10), b"{}")
        await ledger.reserve("p", request("c2", [hold("held", 100, keep_ms=2 * day_ms)], 10, ttl_ms=99 * day_ms))
        await tested.advance(day_ms)
        await ledger.reserve("p", request("c3", [hold("used", 100, keep_ms=2 * day_ms)], 10))
        await ledger.void("p", "c3")
        await ledger.purge()
        await stands_at(ledger, "short", 10, 0)
        await tested.advance(day_ms + MINUTE_MS)
        await ledger.purge()
        await stands_at(ledger, "short", 0, 0)
        await stands_at(ledger, "long", 10, 0)
        await stands_at(ledger, "held", 0, 10)
        assert (await ledger.void("p", "c2")).first

    async def test_an_expired_reservation_waits_for_its_owner_for_days(self, tested: LedgerUnderTest) -> None:
        """What a gateway had on its disk when it died is booked once, whenever it is started again."""
        ledger = tested.ledger
        await ledger.reserve("p", request("c1", [hold("run", 100)], 60))
        await tested.advance(MINUTE_MS)
        assert len(await ledger.expire_due()) == 1
        for _ in range(6):
            await tested.advance(24 * 60 * MINUTE_MS)
            await ledger.purge()
        assert (await ledger.settle("p", "c1", tokens(40), b"{}")).state is State.LATE
        await stands_at(ledger, "run", 40, 0)

    async def test_purge_forgets_resolved_reservations_after_an_hour(self, tested: LedgerUnderTest) -> None:
        ledger = tested.ledger
        await ledger.reserve("p", request("c1", [hold("run", 100)], 10))
        await ledger.reserve("p", request("c2", [hold("run", 100)], 10, ttl_ms=180 * MINUTE_MS))
        await ledger.settle("p", "c1", tokens(10), b"{}")
        await tested.advance(58 * MINUTE_MS)
        await ledger.purge()
        assert (await ledger.settle("p", "c1", tokens(10), b"{}")).state is State.SETTLED
        await tested.advance(3 * MINUTE_MS)
        await ledger.purge()
        assert (await ledger.settle("p", "c1", tokens(10), b"{}")).state is None
        assert [row[0] for row in await ledger.pending("p")] == ["c2"]

    async def test_the_implicit_run_closes_after_silence(self, tested: LedgerUnderTest) -> None:
        ledger = tested.ledger
        quarter_ms = 15 * MINUTE_MS
        assert await ledger.current_run("p", "nightly", "r1", quarter_ms) == "r1"
        await tested.advance(10 * MINUTE_MS)
        assert await ledger.current_run("p", "nightly", "r2", quarter_ms) == "r1"
        await tested.advance(10 * MINUTE_MS)
        assert await ledger.current_run("p", "nightly", "r3", quarter_ms) == "r1"
        assert await ledger.current_run("p", "other", "r4", quarter_ms) == "r4"
        assert await ledger.current_run("q", "nightly", "r5", quarter_ms) == "r5"
        await tested.advance(quarter_ms)
        assert await ledger.current_run("p", "nightly", "r6", quarter_ms) == "r6"

    async def test_the_epoch_stays(self, ledger: Ledger) -> None:
        first = await ledger.epoch()
        await ledger.reserve("p", request("c1", [hold("run", 100)], 10))
        assert first == await ledger.epoch() != ""

    async def test_the_clock_goes_forward(self, tested: LedgerUnderTest) -> None:
        before_ms = await tested.ledger.now_ms()
        await tested.advance(MINUTE_MS)
        assert 0 <= await tested.ledger.now_ms() - before_ms - MINUTE_MS <= TOLERANCE_MS

    async def test_what_was_acknowledged_is_there_after_reopening(self, tested: LedgerUnderTest) -> None:
        if not tested.keeps_after_close:
            pytest.skip("this engine keeps nothing beyond its own life")
        ledger = tested.ledger
        chain = [hold("run", 100, tighten=Limit(tokens=90)), hold("key", 1_000)]
        await ledger.reserve("p", request("c1", chain, 60))
        await ledger.reserve("p", request("c2", chain, 20, on_lost=OnLost.RELEASE))
        await ledger.renew("p", [Progress("c1", tokens(77))], MINUTE_MS)
        await ledger.reserve("p", request("c3", chain, 5))
        await ledger.settle("p", "c3", tokens(4), b"{}")
        await ledger.set_gate("p", "run", Gate.PAUSED)
        await ledger.set_override("p", "key", Limit(tokens=0, nano_usd=5))
        run = await ledger.current_run("p", "nightly", "r1", 60 * MINUTE_MS)
        before = (await ledger.balances("p", ["run", "key"]), await ledger.pending("p"), await ledger.epoch())
        await ledger.close()
        await ledger.open()
        assert before == (await ledger.balances("p", ["run", "key"]), await ledger.pending("p"), await ledger.epoch())
        assert await ledger.current_run("p", "nightly", "r2", 60 * MINUTE_MS) == run
        assert [entry.id for entry in await ledger.outbox_read("flusher")] == ["c3"]
        await tested.advance(MINUTE_MS)
        lost = {one.id: one.booked.tokens for one in await ledger.expire_due()}
        assert lost == {"c1": 77, "c2": 0}
        await stands_at(ledger, "run", 81, 0)
