"""What every ledger engine guarantees for reservations. How they end: test_ledger_resolution_contract.py."""

from __future__ import annotations

import asyncio

import pytest

from gateway.ledger.port import Ledger, LedgerError
from policies.amounts import AMOUNT_MAX, UNLIMITED, ZERO, Amount, Limit
from policies.reservation import Balance, Demand, Gate, Hold, Refusal
from tests.contracts.ledger_calls import (
    MINUTE_MS,
    TOLERANCE_MS,
    assert_account_tokens,
    assert_granted,
    assert_refused,
    balance,
    demand,
    hold,
    request,
    tokens,
)


class TestReserve:
    async def test_holds_the_demand_on_every_account(self, ledger: Ledger) -> None:
        demanded = Demand(100, 50, 50, prompt_nano_usd=1_000, output_nano_usd_per_token=30, choices=2)
        chain = [hold("step:a", 500), hold("run:r", limit=Limit(tokens=900, nano_usd=9_000, requests=3)), hold("key:k")]
        grant = assert_granted(await ledger.reserve("p", request("c1", chain, demanded)))
        held = Amount(200, 4_000, 1)
        assert (grant.reservation_id, grant.output_tokens, grant.held, grant.breaches) == ("c1", 50, held, ())
        assert [account_balance.account for account_balance in grant.balances] == ["step:a", "run:r", "key:k"]
        assert all(
            (account_balance.settled, account_balance.reserved, account_balance.gate) == (ZERO, held, Gate.OPEN)
            for account_balance in grant.balances
        )
        assert [account_balance.limit for account_balance in grant.balances] == [
            account_balance.limit for account_balance in chain
        ]
        assert grant.balances[1].remaining("nano_usd") == 5_000
        assert await ledger.balances("p", ["run:r"]) == (Balance("run:r", UNLIMITED, ZERO, held),)

    async def test_deadline_is_set_by_the_clock_of_the_ledger(self, ledger: Ledger) -> None:
        now_ms = await ledger.now_ms()
        grant = assert_granted(await ledger.reserve("p", request("c1", [hold("run", 10)], 5, ttl_ms=30_000)))
        assert grant.deadline_ms == grant.now_ms + 30_000
        assert now_ms <= grant.now_ms <= now_ms + TOLERANCE_MS

    async def test_output_is_clamped_to_the_smallest_room_of_the_chain(self, ledger: Ledger) -> None:
        """The smallest room of the chain, in tokens or in money, for each of the choices."""
        demanded = Demand(10, 1_000, 5, prompt_nano_usd=100, output_nano_usd_per_token=7, choices=3)
        chain = [hold("step", 100), hold("run", limit=Limit(tokens=5_000, nano_usd=100 + 3 * 7 * 20 + 20))]
        grant = assert_granted(await ledger.reserve("p", request("c1", chain, demanded)))
        assert (grant.output_tokens, grant.held) == (20, Amount(70, 520, 1))

    @pytest.mark.parametrize(
        ("standing", "demanded", "reason", "needed"),
        [
            pytest.param((0, 0), 101, Refusal.TOO_LARGE, 101, id="more-than-the-limit"),
            pytest.param((60, 0), 41, Refusal.EXCEEDED, 41, id="more-than-settled-leaves"),
            pytest.param((0, 60), 41, Refusal.BUSY, 41, id="more-than-reserved-leaves"),
            pytest.param((30, 60), 71, Refusal.EXCEEDED, 71, id="more-than-settled-leaves-even-without-holds"),
        ],
    )
    async def test_refusal_states_reason_account_unit_and_balance(
        self, ledger: Ledger, standing: tuple[int, int], demanded: int, reason: Refusal, needed: int
    ) -> None:
        chain = [hold("wide", 10_000), hold("run", 100)]
        await ledger.reserve("p", request("before", chain, 100))
        await ledger.settle("p", "before", tokens(standing[0]), b"{}")
        await ledger.reserve("p", request("other", chain, standing[1]))
        refusal = assert_refused(await ledger.reserve("p", request("c1", chain, demanded)))
        assert (refusal.reason, refusal.account, refusal.unit, refusal.needed) == (reason, "run", "tokens", needed)
        assert (refusal.balance.settled.tokens, refusal.balance.reserved.tokens) == standing
        assert refusal.balance.limit == Limit(tokens=100)

    async def test_limits_in_money_and_requests_refuse(self, ledger: Ledger) -> None:
        chain = [hold("run", limit=Limit(nano_usd=500, requests=1))]
        dear = Demand(1, 10, 10, prompt_nano_usd=1, output_nano_usd_per_token=50)
        refusal = assert_refused(await ledger.reserve("p", request("c1", chain, dear)))
        assert (refusal.reason, refusal.unit, refusal.needed) == (Refusal.TOO_LARGE, "nano_usd", 501)
        assert_granted(await ledger.reserve("p", request("c2", chain, Demand(1, 0, 0))))
        refusal = assert_refused(await ledger.reserve("p", request("c3", chain, Demand(1, 0, 0))))
        assert (refusal.reason, refusal.unit, refusal.needed) == (Refusal.BUSY, "requests", 1)

    async def test_exceeded_account_is_reported_before_a_busy_one(self, ledger: Ledger) -> None:
        await ledger.reserve("p", request("other", [hold("step", 100)], 90))
        await ledger.reserve("p", request("done", [hold("run", 100)], 95))
        await ledger.settle("p", "done", tokens(95), b"{}")
        refusal = assert_refused(await ledger.reserve("p", request("c1", [hold("step", 100), hold("run", 100)], 20)))
        assert (refusal.reason, refusal.account) == (Refusal.EXCEEDED, "run")

    async def test_refused_reserve_changes_no_account_and_leaves_no_reservation(self, ledger: Ledger) -> None:
        await ledger.reserve("p", request("fits", [hold("step", 100), hold("run", 100)], 60))
        chain = [hold("step", 1_000), hold("run", 100), hold("new", 1_000)]
        assert_refused(await ledger.reserve("p", request("c1", chain, 50)))
        await assert_account_tokens(ledger, "step", 0, 60)
        assert (await balance(ledger, "step")).limit == UNLIMITED
        assert await balance(ledger, "new") == Balance("new", UNLIMITED, ZERO, ZERO)
        assert [row[0] for row in await ledger.pending("p")] == ["fits"]
        assert (await ledger.void("p", "c1")).state is None
        assert_granted(await ledger.reserve("p", request("c1", [hold("run", 100)], 40)))

    async def test_minimum_of_0_is_granted_on_an_exhausted_account(self, ledger: Ledger) -> None:
        await ledger.reserve("p", request("c1", [hold("run", 10)], 10))
        await ledger.settle("p", "c1", tokens(15), b"{}")
        grant = assert_granted(await ledger.reserve("p", request("c2", [hold("run", 10)], demand(50, at_least=0))))
        assert (grant.output_tokens, grant.held, grant.balances[0].remaining("tokens")) == (0, ZERO, -5)

    async def test_observed_account_counts_and_reports_a_breach_and_never_refuses(self, ledger: Ledger) -> None:
        chain = [hold("watched", 10, enforce=False), hold("run", 100)]
        grant = assert_granted(await ledger.reserve("p", request("c1", chain, 50)))
        assert (grant.breaches, grant.output_tokens) == (("watched",), 50)
        await assert_account_tokens(ledger, "watched", 0, 50)

    async def test_repeated_id_returns_the_first_decision_and_reserves_once(self, ledger: Ledger) -> None:
        asked = request("c1", [hold("run", 100)], demand(80, at_least=1))
        first = assert_granted(await ledger.reserve("p", asked))
        again = assert_granted(await ledger.reserve("p", asked))
        assert (again.held, again.output_tokens, again.deadline_ms) == (first.held, 80, first.deadline_ms)
        assert again.balances == first.balances
        await ledger.settle("p", "c1", tokens(30), b"{}")
        resolved = assert_granted(await ledger.reserve("p", asked))
        assert (resolved.held, resolved.output_tokens) == (first.held, 80)
        assert (resolved.balances[0].settled.tokens, resolved.balances[0].reserved.tokens) == (30, 0)

    async def test_repeated_id_on_other_accounts_is_an_error(self, ledger: Ledger) -> None:
        await ledger.reserve("p", request("c1", [hold("poor", 100)], 80))
        with pytest.raises(LedgerError):
            await ledger.reserve("p", request("c1", [hold("rich", 100)], 80))
        await assert_account_tokens(ledger, "rich", 0, 0)

    async def test_50_concurrent_first_calls_of_a_run_share_one_budget(self, ledger: Ledger) -> None:
        asked = [request(f"c{n}", [hold("run:new", 200)], 10) for n in range(50)]
        answers = await asyncio.gather(*(ledger.reserve("p", reserve_request) for reserve_request in asked))
        assert sum(hasattr(answer, "held") for answer in answers) == 20
        await assert_account_tokens(ledger, "run:new", 0, 200)

    async def test_projects_have_separate_accounts_and_reservations(self, ledger: Ledger) -> None:
        for project in ("p", "q"):
            assert_granted(await ledger.reserve(project, request("c1", [hold("run", 100)], 100)))
        await ledger.settle("q", "c1", tokens(7), b"{}")
        await assert_account_tokens(ledger, "run", 0, 100)
        assert (await balance(ledger, "run", "q")).settled.tokens == 7
        assert [row[0] for row in await ledger.pending("p")] == ["c1"]
        assert await ledger.pending("q") in ((), [])

    @pytest.mark.parametrize(
        ("holds", "demanded"),
        [
            pytest.param([], demand(1), id="no-account"),
            pytest.param([hold("a", 1), hold("a", 2)], demand(1), id="same-account-twice"),
            pytest.param([hold("a", -1)], demand(1), id="negative-limit"),
            pytest.param([hold("a", AMOUNT_MAX + 1)], demand(1), id="limit-beyond-2^53"),
            pytest.param([hold("a", 10)], Demand(-1, 1, 1), id="negative-prompt"),
            pytest.param([hold("a", 10)], Demand(1, 1, 2), id="min-above-max"),
            pytest.param([hold("a", 10)], Demand(1, 1, 1, choices=0), id="no-choice"),
            pytest.param([hold("a")], Demand(AMOUNT_MAX, 1, 1), id="demand-beyond-2^53"),
            pytest.param([hold("a", 10)], Demand(1.5, 1, 1), id="not-an-integer"),  # type: ignore[arg-type]
            pytest.param([hold("a", 10)], Demand(True, 1, 1), id="a-bool"),
        ],
    )
    async def test_invalid_reserve_is_an_error_and_changes_nothing(
        self, ledger: Ledger, holds: list[Hold], demanded: Demand
    ) -> None:
        with pytest.raises(LedgerError):
            await ledger.reserve("p", request("c1", holds, demanded))
        await assert_account_tokens(ledger, "a", 0, 0)

    async def test_sum_above_2_to_the_53_is_an_error(self, ledger: Ledger) -> None:
        assert_granted(await ledger.reserve("p", request("c1", [hold("a", AMOUNT_MAX)], AMOUNT_MAX)))
        with pytest.raises(LedgerError):
            await ledger.reserve("p", request("c2", [hold("a")], 1))
        resolution = await ledger.settle("p", "c1", tokens(AMOUNT_MAX), b"{}")
        assert resolution.balances[0].settled.tokens == AMOUNT_MAX
        assert resolution.balances[0].remaining("tokens") == 0

    async def test_1000_settlements_of_1_nano_usd_near_the_maximum_sum_exactly(self, ledger: Ledger) -> None:
        start = AMOUNT_MAX - 10_000
        await ledger.restore("p", "key", Amount(nano_usd=start), MINUTE_MS)
        price = Demand(0, 0, 0, prompt_nano_usd=1, requests=0)
        for chunk in range(10):
            names = [f"c{chunk}-{n}" for n in range(100)]
            await asyncio.gather(*(ledger.reserve("p", request(name, [hold("key")], price)) for name in names))
            await asyncio.gather(*(ledger.settle("p", name, Amount(nano_usd=1), b"{}") for name in names))
        assert (await balance(ledger, "key")).settled.nano_usd == start + 1_000


class TestLimits:
    async def test_lowered_limit_refuses_new_calls_and_lets_running_ones_finish(self, ledger: Ledger) -> None:
        await ledger.reserve("p", request("c1", [hold("run", 100)], 80))
        assert_refused(await ledger.reserve("p", request("c2", [hold("run", 50)], 1)))
        assert (await ledger.settle("p", "c1", tokens(80), b"{}")).first
        assert_granted(await ledger.reserve("p", request("c3", [hold("run", 200)], 120)))

    async def test_tightening_is_remembered_and_never_loosened(self, ledger: Ledger) -> None:
        tight = hold("run", 1_000, tighten=Limit(tokens=100))
        grant = assert_granted(await ledger.reserve("p", request("c1", [tight], 10)))
        assert grant.balances[0].limit == Limit(tokens=100)
        assert (await balance(ledger, "run")).limit == Limit(tokens=100)
        refusal = assert_refused(await ledger.reserve("p", request("c2", [hold("run", 1_000)], 91)))
        assert (refusal.reason, refusal.balance.limit) == (Refusal.BUSY, Limit(tokens=100))
        looser = hold("run", 1_000, tighten=Limit(tokens=500, requests=9))
        grant = assert_granted(await ledger.reserve("p", request("c3", [looser], 90)))
        assert grant.balances[0].limit == Limit(tokens=100, requests=9)

    async def test_refused_call_still_tightens_the_limit(self, ledger: Ledger) -> None:
        chain = [hold("step", 1_000), hold("run", 1_000, tighten=Limit(tokens=30))]
        refusal = assert_refused(await ledger.reserve("p", request("c1", chain, 35)))
        assert (refusal.reason, refusal.account, refusal.balance.limit) == (Refusal.TOO_LARGE, "run", Limit(tokens=30))
        assert await balance(ledger, "run") == Balance("run", Limit(tokens=30), ZERO, ZERO)
        assert (await balance(ledger, "step")).limit == UNLIMITED
        assert (await ledger.void("p", "c1")).state is None
        plain = [hold("step", 1_000), hold("run", 1_000)]
        assert assert_refused(await ledger.reserve("p", request("c2", plain, 31))).balance.limit == Limit(tokens=30)
        assert_granted(await ledger.reserve("p", request("c3", plain, 20)))
        narrower = [hold("run", 1_000, tighten=Limit(tokens=25, requests=2))]
        assert_refused(await ledger.reserve("p", request("c4", narrower, 10)))
        assert await balance(ledger, "run") == Balance("run", Limit(tokens=25, requests=2), ZERO, tokens(20))
        assert_granted(await ledger.reserve("p", request("c5", plain, 5)))

    async def test_demand_of_0_is_granted_above_the_limit_and_still_tightens_it(self, ledger: Ledger) -> None:
        await ledger.reserve("p", request("c1", [hold("run")], 10))
        await ledger.settle("p", "c1", tokens(50), b"{}")
        tight = hold("run", 40, tighten=Limit(tokens=30, requests=1))
        grant = assert_granted(await ledger.reserve("p", request("c2", [tight], 0)))
        assert (grant.held, grant.balances[0].limit) == (ZERO, Limit(tokens=30, requests=1))
        await ledger.void("p", "c2")
        assert await balance(ledger, "run") == Balance("run", Limit(tokens=30, requests=1), tokens(50), ZERO)

    async def test_call_refused_by_a_gate_still_tightens_the_limit(self, ledger: Ledger) -> None:
        await ledger.set_gate("p", "run", Gate.PAUSED)
        refusal = assert_refused(
            await ledger.reserve("p", request("c1", [hold("run", 100, tighten=Limit(tokens=9))], 5))
        )
        assert refusal.reason is Refusal.GATE
        await ledger.set_gate("p", "run", Gate.OPEN)
        assert_refused(await ledger.reserve("p", request("c2", [hold("run", 100)], 10)))

    async def test_override_replaces_the_limit_and_clears_the_tightening(self, ledger: Ledger) -> None:
        tight = hold("run", 100, tighten=Limit(tokens=50))
        assert_granted(await ledger.reserve("p", request("c1", [tight], 50)))
        answer = await ledger.set_override("p", "run", Limit(tokens=300))
        assert answer == Balance("run", Limit(tokens=300), ZERO, tokens(50))
        grant = assert_granted(await ledger.reserve("p", request("c2", [hold("run", 100)], 250)))
        assert grant.balances[0].limit == Limit(tokens=300)
        answer = await ledger.set_override("p", "run", UNLIMITED)
        assert answer.limit == UNLIMITED
        assert_refused(await ledger.reserve("p", request("c3", [hold("run", 100)], 1)))

    async def test_override_leaves_the_limits_in_other_units(self, ledger: Ledger) -> None:
        await ledger.set_override("p", "run", Limit(tokens=300))
        chain = [hold("run", limit=Limit(tokens=100, requests=1))]
        grant = assert_granted(await ledger.reserve("p", request("c1", chain, Demand(200, 0, 0))))
        assert grant.balances[0].limit == Limit(tokens=300, requests=1)

    async def test_override_of_0_refuses_every_token(self, ledger: Ledger) -> None:
        await ledger.set_override("p", "run", Limit(tokens=0))
        assert (await balance(ledger, "run")).limit == Limit(tokens=0)
        refusal = assert_refused(await ledger.reserve("p", request("c1", [hold("run", 100)], 1)))
        assert (refusal.reason, refusal.balance.limit) == (Refusal.TOO_LARGE, Limit(tokens=0))

    @pytest.mark.parametrize("gate", [Gate.PAUSED, Gate.CANCELLED, Gate.COMPLETED, Gate.LOOPING])
    async def test_closed_gate_refuses_new_calls_and_lets_running_ones_finish(self, ledger: Ledger, gate: Gate) -> None:
        chain = [hold("step", 1_000), hold("run", 1_000, enforce=False)]
        await ledger.reserve("p", request("c1", chain, 10))
        assert (await ledger.set_gate("p", "run", gate)).gate is gate
        refusal = assert_refused(await ledger.reserve("p", request("c2", [hold("step", 5), hold("run", 1_000)], 10)))
        assert (refusal.reason, refusal.account, refusal.unit, refusal.balance.gate) == (
            Refusal.GATE,
            "run",
            None,
            gate,
        )
        assert_refused(await ledger.reserve("p", request("c3", chain, 10)))
        assert_granted(await ledger.extend("p", "c1", chain, demand(5)))
        assert (await ledger.settle("p", "c1", tokens(12), b"{}")).first
        await ledger.set_gate("p", "run", Gate.OPEN)
        assert_granted(await ledger.reserve("p", request("c2", chain, 10)))


class TestExtend:
    async def test_extension_adds_to_the_hold_and_returns_the_totals(self, ledger: Ledger) -> None:
        chain = [hold("run", limit=Limit(tokens=100, nano_usd=1_000))]
        first = Demand(10, 20, 20, prompt_nano_usd=5, output_nano_usd_per_token=3)
        start = assert_granted(await ledger.reserve("p", request("c1", chain, first)))
        more = Demand(0, 500, 1, output_nano_usd_per_token=3, requests=0)
        grant = assert_granted(await ledger.extend("p", "c1", chain, more))
        assert (grant.output_tokens, grant.held) == (90, Amount(100, 275, 1))
        assert (grant.deadline_ms, grant.balances[0].reserved) == (start.deadline_ms, grant.held)
        resolution = await ledger.settle("p", "c1", Amount(50, 125, 1), b"{}")
        assert (resolution.balances[0].settled, resolution.balances[0].reserved) == (Amount(50, 125, 1), ZERO)

    @pytest.mark.parametrize(
        ("settled", "others", "extra", "reason"),
        [
            pytest.param(0, 30, 41, Refusal.TOO_LARGE, id="own-hold-fills-the-budget"),
            pytest.param(30, 0, 20, Refusal.EXCEEDED, id="own-hold-and-settled-fill-it"),
            pytest.param(0, 30, 20, Refusal.BUSY, id="other-holds-fill-it"),
        ],
    )
    async def test_refused_extension_states_the_reason_and_keeps_the_hold(
        self, ledger: Ledger, settled: int, others: int, extra: int, reason: Refusal
    ) -> None:
        await ledger.restore("p", "run", tokens(settled), MINUTE_MS)
        await ledger.reserve("p", request("other", [hold("run", 100)], others))
        await ledger.reserve("p", request("c1", [hold("run", 100)], 60))
        refusal = assert_refused(await ledger.extend("p", "c1", [hold("run", 100)], demand(extra)))
        assert (refusal.reason, refusal.account, refusal.unit, refusal.needed) == (reason, "run", "tokens", extra)
        await assert_account_tokens(ledger, "run", settled, others + 60)

    async def test_resolved_or_unknown_reservation_is_not_extended(self, ledger: Ledger) -> None:
        chain = [hold("run", 100)]
        await ledger.reserve("p", request("c1", chain, 10))
        await ledger.settle("p", "c1", tokens(4), b"{}")
        for name in ("c1", "never"):
            refusal = assert_refused(await ledger.extend("p", name, chain, demand(5)))
            assert (refusal.reason, refusal.account, refusal.unit, refusal.needed) == (Refusal.RESOLVED, "run", None, 0)
            assert refusal.balance == Balance("run", Limit(tokens=100), tokens(4), ZERO)
        await assert_account_tokens(ledger, "run", 4, 0)

    async def test_extension_applies_the_limits_given_with_it(self, ledger: Ledger) -> None:
        await ledger.reserve("p", request("c1", [hold("run", 100)], 10))
        grant = assert_granted(
            await ledger.extend("p", "c1", [hold("run", 500, tighten=Limit(tokens=300))], demand(200))
        )
        assert grant.balances[0].limit == Limit(tokens=300)
        resolution = await ledger.settle("p", "c1", tokens(210), b"{}")
        assert resolution.balances[0].limit == Limit(tokens=300)

    async def test_money_alone_is_extended_within_the_limit(self, ledger: Ledger) -> None:
        """A fallback model may cost more: the same tokens for more money."""
        chain = [hold("run", limit=Limit(tokens=100, nano_usd=1_000))]
        assert_granted(
            await ledger.reserve("p", request("c1", chain, Demand(10, 20, 20, prompt_nano_usd=5, requests=1)))
        )
        grant = assert_granted(await ledger.extend("p", "c1", chain, Demand(0, 0, 0, prompt_nano_usd=900, requests=0)))
        assert (grant.output_tokens, grant.held) == (20, Amount(30, 905, 1))
        refusal = assert_refused(await ledger.extend("p", "c1", chain, Demand(0, 0, 0, prompt_nano_usd=96, requests=0)))
        assert (refusal.unit, refusal.balance.reserved) == ("nano_usd", Amount(30, 905, 1))

    async def test_prompt_tokens_alone_are_extended_within_the_limit(self, ledger: Ledger) -> None:
        """A fallback model may count more tokens in the same prompt."""
        chain = [hold("run", 100)]
        assert_granted(await ledger.reserve("p", request("c1", chain, Demand(10, 20, 20))))
        grant = assert_granted(await ledger.extend("p", "c1", chain, Demand(60, 0, 0, requests=0)))
        assert (grant.output_tokens, grant.held) == (20, Amount(90, 0, 1))
        refusal = assert_refused(await ledger.extend("p", "c1", chain, Demand(11, 0, 0, requests=0)))
        assert (refusal.unit, refusal.needed, refusal.balance.reserved) == ("tokens", 11, Amount(90, 0, 1))

    async def test_invalid_extension_is_an_error_and_changes_nothing(self, ledger: Ledger) -> None:
        await ledger.reserve("p", request("c1", [hold("run", 100)], 10))
        for holds, extra in [
            ([hold("other", 100)], demand(5)),
            ([hold("run", 100), hold("other", 100)], demand(5)),
            ([hold("run", 100)], Demand(0, 5, 5, requests=1)),
            ([], demand(5)),
        ]:
            with pytest.raises(LedgerError):
                await ledger.extend("p", "c1", holds, extra)
        await assert_account_tokens(ledger, "run", 0, 10)
