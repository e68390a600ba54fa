"""What every ledger engine guarantees for the end of reservations: settlement, expiry, the outbox, and purging."""

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
    assert_account_tokens,
    assert_refused,
    balance,
    hold,
    request,
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
    async def test_settle_books_the_usage_and_releases_the_rest(
        self, ledger: Ledger, used: Amount, overrun: Amount
    ) -> None:
        demanded = Demand(0, 50, 50, output_nano_usd_per_token=10)
        chain = [hold("step", 60), hold("run", 70)]
        await ledger.reserve("p", request("c1", chain, demanded))
        resolution = await ledger.settle("p", "c1", used, b'{"status":200}')
        assert (resolution.state, resolution.first) == (State.SETTLED, True)
        assert (resolution.booked, resolution.overrun) == (used, overrun)
        assert [account_balance.account for account_balance in resolution.balances] == ["step", "run"]
        assert all(
            (account_balance.settled, account_balance.reserved) == (used, ZERO)
            for account_balance in resolution.balances
        )
        assert [account_balance.remaining("tokens") for account_balance in resolution.balances] == [
            60 - used.tokens,
            70 - used.tokens,
        ]
        (entry,) = await ledger.outbox_read("flusher")
        assert (entry.id, entry.kind, entry.project) == ("c1", EntryKind.SETTLED, "p")
        assert (entry.amount, entry.overrun) == (used, overrun)
        assert (entry.draft, entry.detail) == (b'{"model":"mock"}', b'{"status":200}')
        assert 0 <= await ledger.now_ms() - entry.at_ms <= TOLERANCE_MS

    async def test_hold_across_a_window_end_is_booked_in_the_window_it_was_taken_in(self, ledger: Ledger) -> None:
        budget = Budget(Scope.KEY, Limit(tokens=100), window=Window.MINUTE)
        subject, midnight_ms = Subject("p", key="ci"), 20_000 * 86_400_000
        before, after = (
            list(chain_for(subject, [budget], RunLimits(), at_ms).holds) for at_ms in (midnight_ms - 1, midnight_ms)
        )
        assert isinstance(await ledger.reserve("p", request("c1", before, 80)), Granted)
        assert isinstance(await ledger.reserve("p", request("c2", after, 90)), Granted), (
            "a new minute has its whole budget"
        )
        resolution = await ledger.settle("p", "c1", tokens(70), b"{}")
        assert [account_balance.account for account_balance in resolution.balances] == [
            account_balance.account for account_balance in before
        ]
        await assert_account_tokens(ledger, before[-1].account, settled=70, reserved=0)
        await assert_account_tokens(ledger, after[-1].account, settled=0, reserved=90)

    async def test_second_resolution_returns_the_first_outcome(self, ledger: Ledger) -> None:
        for name, first, second in [("c1", "settle", "settle"), ("c2", "settle", "void"), ("c3", "void", "settle")]:
            await ledger.reserve("p", request(name, [hold(name, 100)], 60))
            for index, how in enumerate((first, second)):
                if how == "settle":
                    resolution = await ledger.settle("p", name, tokens(40 + index), b"{}")
                else:
                    resolution = await ledger.void("p", name)
                assert resolution.first is (index == 0)
                assert resolution.state is (State.SETTLED if first == "settle" else State.VOIDED)
                assert resolution.booked == (tokens(40) if first == "settle" else ZERO)
                assert resolution.balances == (Balance(name, Limit(tokens=100), resolution.booked, ZERO),)
        assert await ledger.outbox_size() == 2

    async def test_void_releases_everything_and_writes_no_outbox_entry(self, ledger: Ledger) -> None:
        await ledger.reserve("p", request("c1", [hold("run", 100)], 60))
        resolution = await ledger.void("p", "c1")
        assert (resolution.state, resolution.first, resolution.booked, resolution.overrun) == (
            State.VOIDED,
            True,
            ZERO,
            ZERO,
        )
        await assert_account_tokens(ledger, "run", 0, 0)
        assert await ledger.outbox_size() == 0

    async def test_unknown_id_has_no_state_and_changes_nothing(self, ledger: Ledger) -> None:
        for resolution in (await ledger.void("p", "never"), await ledger.settle("p", "never", tokens(5), b"{}")):
            assert (resolution.state, resolution.first, resolution.booked, resolution.balances) == (
                None,
                False,
                ZERO,
                (),
            )
        assert await ledger.outbox_size() == 0

    @pytest.mark.parametrize("used", [tokens(-1), Amount(nano_usd=AMOUNT_MAX + 1), Amount(tokens=1.5)])  # type: ignore[arg-type]
    async def test_invalid_amount_is_an_error_and_changes_nothing(self, ledger: Ledger, used: Amount) -> None:
        await ledger.reserve("p", request("c1", [hold("run", 100)], 60))
        with pytest.raises(LedgerError):
            await ledger.settle("p", "c1", used, b"{}")
        await assert_account_tokens(ledger, "run", 0, 60)

    async def test_settled_counter_saturates_at_its_maximum(self, ledger: Ledger) -> None:
        """Booking never fails, even where the sum is beyond what an engine can keep."""
        await ledger.reserve("p", request("c1", [hold("run")], 60))
        await ledger.restore("p", "run", tokens(AMOUNT_MAX), MINUTE_MS)
        assert (await ledger.settle("p", "c1", tokens(60), b"{}")).booked == tokens(60)
        await assert_account_tokens(ledger, "run", AMOUNT_MAX, 0)

    async def test_draft_and_detail_are_returned_byte_for_byte(self, ledger: Ledger) -> None:
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
            pytest.param(OnLost.CHARGE, Progress("c1", tokens(25)), 60, id="charged-whole-despite-less-progress"),
            pytest.param(OnLost.CHARGE, Progress("c1", tokens(75)), 75, id="progress-above-the-hold"),
            pytest.param(OnLost.CHARGE, Progress("c1", ZERO, OnLost.RELEASE), 0, id="owner-reported-nothing-sent"),
            pytest.param(OnLost.RELEASE, Progress("c1", tokens(25)), 0, id="released"),
            pytest.param(OnLost.RELEASE, Progress("c1", ZERO, OnLost.CHARGE), 60, id="owner-reported-sent"),
        ],
    )
    async def test_overdue_reservation_is_charged_or_released_and_may_be_voided_late(
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
        await assert_account_tokens(ledger, "run", booked, 0)
        (entry,) = await ledger.outbox_read("flusher")
        assert (entry.id, entry.kind, entry.amount) == ("c1:lost", EntryKind.EXPIRED, tokens(booked))
        assert (entry.draft, entry.overrun) == (b'{"model":"mock"}', tokens(max(0, booked - 60)))
        assert len(await ledger.expire_due()) == 0
        for first in (True, False):
            resolution = await ledger.void("p", "c1")
            assert (resolution.state, resolution.first, resolution.booked) == (State.LATE, first, ZERO), (
                "nothing was spent"
            )
        await assert_account_tokens(ledger, "run", 0, 0)
        *_, entry = await ledger.outbox_read("flusher")
        assert (entry.id, entry.kind, entry.amount) == ("c1:late", EntryKind.LATE, tokens(-booked))
        assert entry.overrun == tokens(-max(0, booked - 60)), "the overrun of the expiry is taken back"

    @pytest.mark.parametrize("used", [70, 25, 10, 0])
    async def test_settle_after_expiry_books_the_difference_once(self, tested: LedgerUnderTest, used: int) -> None:
        ledger = tested.ledger
        await ledger.reserve("p", request("c1", [hold("run", 100)], 60))
        await ledger.renew("p", [Progress("c1", tokens(25))], MINUTE_MS)
        await tested.advance(MINUTE_MS)
        await ledger.expire_due()
        late = await ledger.settle("p", "c1", tokens(used), b'{"late":1}')
        assert (late.state, late.first, late.booked) == (State.LATE, True, tokens(used))
        assert late.overrun == tokens(max(0, used - 60))
        await assert_account_tokens(ledger, "run", used, 0)
        again = await ledger.settle("p", "c1", tokens(99), b"{}")
        assert (again.state, again.first, again.booked) == (State.LATE, False, tokens(used))
        assert not (await ledger.void("p", "c1")).first
        expired, entry = await ledger.outbox_read("flusher")
        assert (expired.id, entry.id, entry.kind) == ("c1:lost", "c1:late", EntryKind.LATE)
        assert (entry.amount, entry.overrun) == (tokens(used - 60), tokens(max(0, used - 60)))
        assert (entry.draft, entry.detail) == (b'{"model":"mock"}', b'{"late":1}')
        await assert_account_tokens(ledger, "run", used, 0)

    async def test_settle_between_deadline_and_sweep_is_not_late(self, tested: LedgerUnderTest) -> None:
        await tested.ledger.reserve("p", request("c1", [hold("run", 100)], 60))
        await tested.advance(2 * MINUTE_MS)
        assert (await tested.ledger.settle("p", "c1", tokens(5), b"{}")).state is State.SETTLED
        assert len(await tested.ledger.expire_due()) == 0

    async def test_renewal_keeps_a_reservation_pending_for_ten_minutes(self, tested: LedgerUnderTest) -> None:
        ledger = tested.ledger
        await ledger.reserve("p", request("c1", [hold("run", 100)], 60))
        for minute in range(20):
            await tested.advance(MINUTE_MS // 2)
            assert await ledger.renew("p", [Progress("c1", tokens(minute))], MINUTE_MS) == ()
            assert len(await ledger.expire_due()) == 0
        ((name, owner, held, deadline_ms),) = await ledger.pending("p")
        assert (name, owner, held) == ("c1", "gateway-1", tokens(60))
        assert MINUTE_MS - TOLERANCE_MS <= deadline_ms - await ledger.now_ms() <= MINUTE_MS

    async def test_reported_progress_never_decreases(self, tested: LedgerUnderTest) -> None:
        ledger = tested.ledger
        await ledger.reserve("p", request("c1", [hold("run", 100)], 60))
        for used in (Amount(90, 7, 0), Amount(20, 9, 0), ZERO):
            await ledger.renew("p", [Progress("c1", used)], MINUTE_MS)
        await tested.advance(MINUTE_MS)
        (lost,) = await ledger.expire_due()
        assert lost.booked == Amount(90, 9, 0)

    async def test_on_lost_follows_the_owner_and_stays_charge_after_progress(self, tested: LedgerUnderTest) -> None:
        ledger = tested.ledger
        for name in ("c1", "c2", "c3"):
            await ledger.reserve("p", request(name, [hold("run", 200)], 60))
        unsent = [Progress(name, ZERO, OnLost.RELEASE) for name in ("c1", "c2", "c3")]
        await ledger.renew("p", unsent, MINUTE_MS)
        await ledger.renew("p", [Progress("c1", ZERO, OnLost.CHARGE), Progress("c2")], MINUTE_MS)
        # c3 was sent meanwhile, and then an older message arrives.
        await ledger.renew("p", [Progress("c3", tokens(5), OnLost.CHARGE)], MINUTE_MS)
        await ledger.renew("p", unsent[2:], MINUTE_MS)
        await tested.advance(MINUTE_MS)
        lost = {expired.id: expired.booked for expired in await ledger.expire_due()}
        assert lost == {"c1": tokens(60), "c2": ZERO, "c3": tokens(60)}
        await assert_account_tokens(ledger, "run", 120, 0)

    async def test_renewal_returns_the_ids_that_are_not_pending(self, tested: LedgerUnderTest) -> None:
        ledger = tested.ledger
        for name in ("c1", "c2", "c3"):
            await ledger.reserve("p", request(name, [hold("run", 100)], 10))
        await ledger.settle("p", "c1", tokens(1), b"{}")
        await ledger.void("p", "c3")
        gone = await ledger.renew("p", [Progress(name) for name in ("c1", "c2", "never", "c3")], MINUTE_MS)
        assert gone == ("c1", "never", "c3")

    async def test_overdue_reservation_can_be_renewed_before_the_sweep(self, tested: LedgerUnderTest) -> None:
        ledger = tested.ledger
        await ledger.reserve("p", request("c1", [hold("run", 100)], 10))
        await tested.advance(2 * MINUTE_MS)
        assert await ledger.renew("p", [Progress("c1")], MINUTE_MS) == ()
        assert len(await ledger.expire_due()) == 0

    async def test_expire_due_is_limited_and_spans_projects(self, tested: LedgerUnderTest) -> None:
        ledger = tested.ledger
        for project in ("p", "q"):
            for n in range(3):
                await ledger.reserve(project, request(f"c{n}", [hold("run", 100)], 10, ttl_ms=MINUTE_MS * (n + 1)))
        await tested.advance(2 * MINUTE_MS)
        first = await ledger.expire_due(limit=3)
        second = await ledger.expire_due()
        assert len(first) == 3
        assert sorted((expired.project, expired.id) for expired in [*first, *second]) == [
            (project, name) for project in "pq" for name in ("c0", "c1")
        ]

    async def test_pending_lists_the_earliest_deadline_first(self, ledger: Ledger) -> None:
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

    async def test_consumers_claim_disjoint_entries_until_a_claim_expires(self, tested: LedgerUnderTest) -> None:
        ledger = tested.ledger
        await self.settled(ledger, "c1", "c2", "c3")
        first = await ledger.outbox_read("one", limit=2)
        second = await ledger.outbox_read("two")
        assert ([entry.id for entry in first], [entry.id for entry in second]) == (["c1", "c2"], ["c3"])
        await ledger.outbox_acknowledge(second)
        await tested.advance(31_000)
        assert [entry.id for entry in await ledger.outbox_read("two")] == ["c1", "c2"]
        await ledger.outbox_acknowledge(first)
        assert await ledger.outbox_size() == 0

    async def test_read_returns_as_many_entries_as_asked_even_2100(self, ledger: Ledger) -> None:
        """More entries than one Redis command takes as arguments."""
        entry = OutboxEntry("", "e", EntryKind.RECORDED, "p", tokens(1), 0, b"{}")
        await ledger.record("p", [replace(entry, id=f"e{number}") for number in range(2_500)])
        first = await ledger.outbox_read("one", limit=2_100)
        second = await ledger.outbox_read("two", limit=2_100)
        assert [expired.id for expired in (*first, *second)] == [f"e{number}" for number in range(2_500)]
        assert len(first) == 2_100
        await ledger.outbox_acknowledge([*first, *second])
        assert await ledger.outbox_size() == 0

    async def test_read_spans_projects(self, ledger: Ledger) -> None:
        await self.settled(ledger, "c1")
        await self.settled(ledger, "c2", project="q")
        entries = await ledger.outbox_read("flusher")
        assert sorted((entry.project, entry.id) for entry in entries) == [("p", "c1"), ("q", "c2")]
        await ledger.outbox_acknowledge(entries)
        assert await ledger.outbox_size() == 0

    async def test_record_adds_entries_without_a_reservation(self, ledger: Ledger) -> None:
        resolution = OutboxEntry("", "u1", EntryKind.RECORDED, "p", Amount(5, 6, 1), 0, b"{}", b'{"x":1}')
        repair = OutboxEntry("", "u2", EntryKind.REPAIR, "p", Amount(-5, 0, 0), 1_700_000_000_000, b"{}")
        await ledger.record("p", [resolution, repair])
        first, second = await ledger.outbox_read("flusher")
        assert first == replace(resolution, position=first.position, at_ms=first.at_ms)
        assert 0 <= await ledger.now_ms() - first.at_ms <= TOLERANCE_MS
        assert second == replace(repair, position=second.position)
        assert len({first.position, second.position, ""}) == 3


class TestMaintenance:
    async def test_restore_sets_settled_and_leaves_the_holds(self, ledger: Ledger) -> None:
        await ledger.reserve("p", request("c1", [hold("run", 100)], 10))
        await ledger.restore("p", "run", tokens(77), MINUTE_MS)
        await ledger.restore("p", "new", tokens(5), MINUTE_MS)
        await assert_account_tokens(ledger, "run", 77, 10)
        await assert_account_tokens(ledger, "new", 5, 0)
        assert_refused(await ledger.reserve("p", request("c2", [hold("run", 100)], 14)))

    async def test_restore_sets_gate_and_override_only_if_given(self, ledger: Ledger) -> None:
        await ledger.restore("p", "run", tokens(7), MINUTE_MS, Gate.PAUSED, Limit(tokens=20))
        refusal = assert_refused(await ledger.reserve("p", request("c1", [hold("run", 100)], 10)))
        assert (refusal.reason, refusal.balance.gate) == (Refusal.GATE, Gate.PAUSED)
        await ledger.set_gate("p", "run", Gate.OPEN)
        refusal = assert_refused(await ledger.reserve("p", request("c1", [hold("run", 100)], 14)))
        assert (refusal.reason, refusal.balance.limit) == (Refusal.EXCEEDED, Limit(tokens=20))
        await ledger.restore("p", "run", tokens(8), MINUTE_MS)
        account_balance = (await ledger.balances("p", ["run"]))[0]
        assert (account_balance.gate, account_balance.limit, account_balance.settled) == (
            Gate.OPEN,
            Limit(tokens=20),
            tokens(8),
        )

    async def test_purge_forgets_idle_accounts_without_holds(self, tested: LedgerUnderTest) -> None:
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
        await assert_account_tokens(ledger, "short", 10, 0)
        await tested.advance(day_ms + MINUTE_MS)
        await ledger.purge()
        await assert_account_tokens(ledger, "short", 0, 0)
        await assert_account_tokens(ledger, "long", 10, 0)
        await assert_account_tokens(ledger, "held", 0, 10)
        assert (await ledger.void("p", "c2")).first

    async def test_expired_reservation_can_be_settled_for_days(self, tested: LedgerUnderTest) -> None:
        """A settlement that a dead gateway had on its disk is booked once, whenever the gateway is started again."""
        ledger = tested.ledger
        await ledger.reserve("p", request("c1", [hold("run", 100)], 60))
        await tested.advance(MINUTE_MS)
        assert len(await ledger.expire_due()) == 1
        for _ in range(6):
            await tested.advance(24 * 60 * MINUTE_MS)
            await ledger.purge()
        assert (await ledger.settle("p", "c1", tokens(40), b"{}")).state is State.LATE
        await assert_account_tokens(ledger, "run", 40, 0)

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

    async def test_implicit_run_ends_after_its_idle_time(self, tested: LedgerUnderTest) -> None:
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

    async def test_purge_forgets_an_implicit_run_only_after_its_idle_time(self, tested: LedgerUnderTest) -> None:
        ledger = tested.ledger
        quarter_ms = 15 * MINUTE_MS
        await ledger.current_run("p", "nightly", "r1", quarter_ms)
        await tested.advance(10 * MINUTE_MS)
        await ledger.current_run("p", "nightly", "r2", quarter_ms)
        await tested.advance(10 * MINUTE_MS)
        assert await ledger.purge() == 0
        assert await ledger.current_run("p", "nightly", "r3", quarter_ms) == "r1"
        await tested.advance(quarter_ms)
        assert await ledger.purge() == 1

    async def test_shorter_silence_ends_an_implicit_run_earlier(self, tested: LedgerUnderTest) -> None:
        ledger = tested.ledger
        await ledger.current_run("p", "nightly", "r1", 60 * MINUTE_MS)
        assert await ledger.current_run("p", "nightly", "r2", 5 * MINUTE_MS) == "r1"
        await tested.advance(6 * MINUTE_MS)
        assert await ledger.current_run("p", "nightly", "r3", 5 * MINUTE_MS) == "r3"
        await tested.advance(6 * MINUTE_MS)
        assert await ledger.purge() == 1

    async def test_purge_keeps_what_was_set_on_an_account_before_its_first_call(self, tested: LedgerUnderTest) -> None:
        ledger = tested.ledger
        await ledger.set_gate("p", "paused", Gate.PAUSED)
        await ledger.set_override("p", "raised", Limit(tokens=9))
        tightened = hold("tightened", 100, tighten=Limit(tokens=50))
        assert_refused(await ledger.reserve("p", request("c1", [tightened], 60)))
        await tested.advance(60 * MINUTE_MS)
        assert await ledger.purge() == 0
        assert (await balance(ledger, "paused")).gate is Gate.PAUSED
        assert (await balance(ledger, "raised")).limit == Limit(tokens=9)
        assert_refused(await ledger.reserve("p", request("c2", [hold("tightened", 100)], 60)))

    async def test_account_that_a_late_settlement_makes_again_is_kept(self, tested: LedgerUnderTest) -> None:
        ledger = tested.ledger
        await ledger.reserve("p", request("c1", [hold("minute", 100, keep_ms=MINUTE_MS)], 10, ttl_ms=MINUTE_MS // 2))
        await tested.advance(MINUTE_MS)
        await ledger.expire_due()  # charged 10
        await tested.advance(2 * MINUTE_MS)
        await ledger.purge()
        await assert_account_tokens(ledger, "minute", 0, 0)
        await ledger.settle("p", "c1", Amount(25, 0, 1), b"{}")
        await tested.advance(2 * MINUTE_MS)
        await ledger.purge()
        await assert_account_tokens(ledger, "minute", 15, 0)

    async def test_epoch_does_not_change(self, ledger: Ledger) -> None:
        first = await ledger.epoch()
        await ledger.reserve("p", request("c1", [hold("run", 100)], 10))
        assert first == await ledger.epoch() != ""

    async def test_clock_advances(self, tested: LedgerUnderTest) -> None:
        before_ms = await tested.ledger.now_ms()
        await tested.advance(MINUTE_MS)
        assert 0 <= await tested.ledger.now_ms() - before_ms - MINUTE_MS <= TOLERANCE_MS

    async def test_acknowledged_state_survives_reopening(self, tested: LedgerUnderTest) -> None:
        if not tested.is_durable:
            pytest.skip("this engine does not persist anything")
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
        lost = {expired.id: expired.booked.tokens for expired in await ledger.expire_due()}
        assert lost == {"c1": 77, "c2": 0}
        await assert_account_tokens(ledger, "run", 81, 0)
