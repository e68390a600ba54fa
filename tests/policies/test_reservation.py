from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.amounts import AMOUNT_MAX, UNITS, UNLIMITED, ZERO, Amount, Limit
from policies.reservation import (
    Account,
    Balance,
    Demand,
    Event,
    Gate,
    Granted,
    Hold,
    OnLost,
    Refusal,
    Refused,
    Reserve,
    State,
    extend,
    fit,
    next_state,
    place,
    repeat_placement,
    resolved_refusal,
)

TRANSITIONS = {
    (State.PENDING, Event.SETTLE): State.SETTLED,
    (State.PENDING, Event.VOID): State.VOIDED,
    (State.PENDING, Event.EXPIRE): State.EXPIRED,
    (State.EXPIRED, Event.SETTLE): State.LATE,
    (State.EXPIRED, Event.VOID): State.LATE,
}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_reservation_is_resolved_once_and_late_after_expiry(state: State, event: Event) -> None:
    assert next_state(state, event) == TRANSITIONS.get((state, event))


def test_demand_multiplies_output_by_choices() -> None:
    demand = Demand(100, 50, 10, prompt_nano_usd=7, output_nano_usd_per_token=3, choices=4)
    assert demand.amount(50) == Amount(300, 607, 1)
    assert demand.prompt_amount == Amount(100, 7, 1)


@pytest.mark.parametrize(
    ("override", "tightened", "limit", "tighten", "effective"),
    [
        (UNLIMITED, UNLIMITED, Limit(10), UNLIMITED, Limit(10)),
        (Limit(30), UNLIMITED, Limit(10, 5), UNLIMITED, Limit(30, 5)),
        (Limit(30), Limit(20), Limit(10), UNLIMITED, Limit(20)),
        (UNLIMITED, Limit(20), Limit(10), Limit(15), Limit(10)),
        (UNLIMITED, Limit(20), Limit(30), Limit(15), Limit(15)),
        (UNLIMITED, UNLIMITED, UNLIMITED, Limit(None, None, 2), Limit(None, None, 2)),
        (Limit(0), UNLIMITED, Limit(10), UNLIMITED, Limit(0)),
    ],
)
def test_effective_limit_applies_override_then_tightening(
    override: Limit, tightened: Limit, limit: Limit, tighten: Limit, effective: Limit
) -> None:
    account = Account(override=override, tightened=tightened)
    assert account.effective_limit(limit, tighten) == effective


def test_remaining_is_negative_after_an_overrun() -> None:
    balance = Balance("run", Limit(tokens=100), Amount(90), Amount(15))
    assert (balance.remaining("tokens"), balance.remaining("nano_usd")) == (-5, None)


def test_most_severe_refusal_of_the_chain_is_reported_then_the_first() -> None:
    needed = Demand(0, 10, 10, requests=0)
    busy = (Hold("busy", Limit(10)), Account(reserved=Amount(5)))
    spent = (Hold("spent", Limit(10)), Account(settled=Amount(5)))
    small = (Hold("small", Limit(9)), Account())
    paused = (Hold("paused"), Account(gate=Gate.PAUSED))
    for chain, refused in [
        ([busy], (0, Refusal.BUSY, "tokens")),
        ([busy, spent], (1, Refusal.EXCEEDED, "tokens")),
        ([busy, spent, small], (2, Refusal.TOO_LARGE, "tokens")),
        ([busy, spent, small, paused], (3, Refusal.GATE, None)),
        ([spent, busy, spent], (0, Refusal.EXCEEDED, "tokens")),
    ]:
        assert fit(needed, [hold for hold, _ in chain], [account for _, account in chain]).refused == refused


def test_extension_blocked_by_the_calls_own_hold_is_not_busy() -> None:
    hold, extra = Hold("run", Limit(100)), Demand(0, 30, 30, requests=0)
    account = Account(reserved=Amount(80))
    assert fit(extra, [hold], [account]).refused == (0, Refusal.BUSY, "tokens")
    assert fit(extra, [hold], [account], extending=True, held=Amount(60)).refused == (0, Refusal.BUSY, "tokens")
    assert fit(extra, [hold], [account], extending=True, held=Amount(80)).refused == (0, Refusal.TOO_LARGE, "tokens")
    spent = Account(settled=Amount(10), reserved=Amount(65))
    assert fit(extra, [hold], [spent], extending=True, held=Amount(65)).refused == (0, Refusal.EXCEEDED, "tokens")


amounts = st.builds(Amount, *[st.integers(0, 60)] * 3)
limits = st.builds(Limit, *[st.none() | st.integers(0, 120)] * 3)
accounts = st.builds(
    Account, amounts, amounts, st.just(UNLIMITED) | limits, st.just(UNLIMITED) | limits, st.sampled_from(Gate)
)
holds = st.builds(Hold, st.just(""), limits, st.just(UNLIMITED) | limits, st.booleans())


@st.composite
def demands(draw: st.DrawFn) -> Demand:
    most = draw(st.integers(0, 60))
    return Demand(
        draw(st.integers(0, 40)),
        most,
        draw(st.integers(0, most)),
        draw(st.integers(0, 40)),
        draw(st.integers(0, 4)),
        draw(st.integers(1, 3)),
        draw(st.integers(0, 1)),
    )


def fits(demand: Demand, output_tokens: int, hold: Hold, account: Account) -> bool:
    """The definition: in no unit that is wanted, settled + reserved would exceed the limit."""
    limit, needed = account.effective_limit(hold.limit, hold.tighten), demand.amount(output_tokens)
    return all(
        needed.of(unit) == 0 or account.settled.of(unit) + account.reserved.of(unit) + needed.of(unit) <= most
        for unit in UNITS
        if (most := limit.of(unit)) is not None
    )


@given(demands(), st.lists(st.tuples(holds, accounts), min_size=1, max_size=4))
def test_fit_grants_the_most_output_that_every_limit_allows(demand: Demand, chain: list[tuple[Hold, Account]]) -> None:
    outcome = fit(demand, [hold for hold, _ in chain], [account for _, account in chain])
    enforced = [(hold, account) for hold, account in chain if hold.enforce]
    open_gates = all(account.gate is Gate.OPEN for _, account in chain)
    possible = open_gates and all(fits(demand, demand.output_tokens_min, *pair) for pair in enforced)
    assert (outcome.refused is None) == possible
    watched = {index for index, (hold, account) in enumerate(chain) if not hold.enforce and account.gate is Gate.OPEN}
    assert set(outcome.breaches) == {
        index for index in watched if not fits(demand, demand.output_tokens_min, *chain[index])
    }
    if possible:
        assert demand.output_tokens_min <= outcome.output_tokens <= demand.output_tokens_max
        assert all(fits(demand, outcome.output_tokens, *pair) for pair in enforced)
        more = outcome.output_tokens + 1
        assert more > demand.output_tokens_max or not all(fits(demand, more, *pair) for pair in enforced)


@given(demands(), st.lists(st.tuples(holds, accounts), min_size=1, max_size=3))
def test_closed_gate_does_not_refuse_an_extension(demand: Demand, chain: list[tuple[Hold, Account]]) -> None:
    opened = [replace(account, gate=Gate.OPEN) for _, account in chain]
    names = [hold for hold, _ in chain]
    assert fit(demand, names, [account for _, account in chain], extending=True) == fit(demand, names, opened)


def request(*chain: Hold, tokens: int = 40) -> Reserve:
    return Reserve("c1", "gw", chain, Demand(0, tokens, tokens, requests=0), 60_000, b"draft", OnLost.RELEASE)


def test_place_returns_the_reservation_and_accounts_to_write() -> None:
    chain = (Hold("step", Limit(50), Limit(45), keep_ms=5), Hold("run", Limit(100)))
    before = (Account(settled=Amount(1)), Account(reserved=Amount(2), tightened=Limit(90)))
    placed = place(request(*chain), before, 1_000)
    assert placed.accounts == (
        Account(Amount(1), Amount(40), tightened=Limit(45), keep_ms=5, used_ms=1_000),
        Account(ZERO, Amount(42), tightened=Limit(90), used_ms=1_000),
    )
    reservation = placed.reservation
    assert reservation is not None
    assert (reservation.accounts, reservation.limits) == (("step", "run"), (Limit(50), Limit(100)))
    assert (reservation.held, reservation.deadline_ms, reservation.state) == (Amount(40), 61_000, State.PENDING)
    assert (reservation.draft, reservation.on_lost, reservation.owner) == (b"draft", OnLost.RELEASE, "gw")
    assert isinstance(placed.decision, Granted)
    assert [balance.limit for balance in placed.decision.balances] == [Limit(45), Limit(90)]


def test_refused_placement_writes_nothing() -> None:
    placed = place(request(Hold("run", Limit(30))), (Account(),), 1_000)
    assert (placed.reservation, placed.accounts) == (None, ())
    balance = Balance("run", Limit(30), ZERO, ZERO)
    assert placed.decision == Refused(Refusal.TOO_LARGE, "run", "tokens", 40, balance, 1_000, balances=(balance,))


def test_refused_placement_still_tightens_the_account() -> None:
    chain = (Hold("step", Limit(50)), Hold("run", tighten=Limit(30), keep_ms=9))
    standing = Account(settled=Amount(5), tightened=Limit(40, requests=7), used_ms=1)
    placed = place(request(*chain), (Account(), standing), 1_000)
    assert (placed.reservation, placed.accounts) == (None, ())
    after = replace(standing, tightened=Limit(30, requests=7), keep_ms=9, used_ms=1_000)
    assert placed.tightened == (("run", after),)
    assert place(request(*chain), (Account(), after), 1_001).tightened == ()


@pytest.mark.parametrize("standing", [Account(settled=Amount(AMOUNT_MAX)), Account(reserved=Amount(AMOUNT_MAX - 39))])
def test_place_above_the_largest_amount_raises(standing: Account) -> None:
    with pytest.raises(ValueError, match=r"2\^53"):
        place(request(Hold("run")), (standing,), 0)


def test_extend_adds_to_the_hold_and_keeps_the_deadline() -> None:
    first = place(request(Hold("run", Limit(100))), (Account(),), 0)
    assert first.reservation is not None
    chain, extra = (Hold("run", Limit(70)),), Demand(0, 50, 1, requests=0)
    grown = extend(first.reservation, chain, extra, first.accounts, 5_000)
    assert grown.reservation == replace(first.reservation, held=Amount(70), output_tokens=70, limits=(Limit(70),))
    assert isinstance(grown.decision, Granted)
    assert (grown.decision.output_tokens, grown.decision.held, grown.decision.deadline_ms) == (70, Amount(70), 60_000)
    settled = replace(first.reservation, state=State.SETTLED)
    assert extend(settled, chain, extra, first.accounts, 5).decision == resolved_refusal(chain, first.accounts, 5)


def test_repeated_id_must_name_the_same_accounts() -> None:
    first = place(request(Hold("run", Limit(100))), (Account(),), 0)
    assert first.reservation is not None
    again = repeat_placement(request(Hold("run", Limit(100))), first.reservation, first.accounts, 0)
    assert again.decision == first.decision
    assert again.reservation is None
    for wrong in ((Hold("other"),), (Hold("run"), Hold("other")), ()):
        with pytest.raises(ValueError, match="not on the accounts given"):
            repeat_placement(request(*wrong), first.reservation, [Account()] * len(wrong), 0)
        with pytest.raises(ValueError, match="not on the accounts given"):
            extend(first.reservation, wrong, Demand(0, 1, 1, requests=0), [Account()] * len(wrong), 0)


@pytest.mark.parametrize(
    ("hold", "account", "demand", "granted"),
    [
        (Hold("r", Limit(101)), Account(Amount(10), Amount(5)), Demand(7, 60, 0, choices=2), 39),
        (Hold("r", Limit(100), Limit(20)), Account(), Demand(7, 60, 0), 13),
        (Hold("r", Limit(None, 1000)), Account(Amount(0, 100), Amount(0, 50)), Demand(0, 99, 0, 30, 4, choices=3), 68),
        (Hold("r", Limit(None, 10)), Account(), Demand(0, 60, 0, output_nano_usd_per_token=1), 10),
        (Hold("r", Limit(None, 10)), Account(), Demand(0, 60, 0), 60),  # answers cost nothing
    ],
)
def test_output_is_clamped_to_what_every_unit_leaves(
    hold: Hold, account: Account, demand: Demand, granted: int
) -> None:
    assert fit(demand, [hold], [account]).output_tokens == granted


@pytest.mark.parametrize(
    ("limit", "unit"), [(Limit(9), "tokens"), (Limit(None, 9), "nano_usd"), (Limit(None, None, 9), "requests")]
)
def test_limit_may_be_reached_and_not_exceeded_in_each_unit(limit: Limit, unit: str) -> None:
    account = Account(Amount(5, 5, 5), Amount(2, 2, 2))
    assert fit(Demand(2, 0, 0, 2, requests=2), [Hold("run", limit)], [account]).refused is None
    assert fit(Demand(3, 0, 0, 3, requests=3), [Hold("run", limit)], [account]).refused == (0, Refusal.BUSY, unit)


def test_refusal_grants_nothing_and_names_the_unit_that_does_not_fit() -> None:
    outcome = fit(Demand(10, 5, 0, 3), [Hold("run", Limit(10, 2))], [Account()])
    assert (outcome.output_tokens, outcome.refused) == (0, (0, Refusal.TOO_LARGE, "nano_usd"))
    held = Account(reserved=Amount(0, 5))
    assert fit(Demand(10, 0, 0, 3), [Hold("run", Limit(10, 6))], [held]).refused == (0, Refusal.BUSY, "nano_usd")


def test_chain_with_fewer_accounts_than_holds_raises() -> None:
    demand = Demand(0, 1, 1)
    with pytest.raises(ValueError, match="shorter"):
        fit(demand, [Hold("step"), Hold("run")], [Account()])
    first = place(request(Hold("run", Limit(100))), (Account(),), 0)
    assert first.reservation is not None
    with pytest.raises(ValueError, match="shorter"):
        repeat_placement(request(Hold("run")), first.reservation, (), 0)


FULL = AMOUNT_MAX - 5


@pytest.mark.parametrize("unit", range(3))
def test_account_may_reach_the_largest_amount_in_each_unit(unit: int) -> None:
    def of_unit(value: int) -> Amount:
        return Amount(*(value if at == unit else 0 for at in range(3)))

    def asked(count: int) -> Reserve:
        more = of_unit(count)
        return replace(request(Hold("run")), demand=Demand(more.tokens, 0, 0, more.nano_usd, requests=more.requests))

    standing = Account(settled=of_unit(FULL), reserved=of_unit(2))
    assert place(asked(3), (standing,), 0).accounts[0].reserved == of_unit(5)
    with pytest.raises(ValueError, match=r"2\^53"):
        place(asked(4), (standing,), 0)


def test_tightened_limit_is_reported_in_every_decision() -> None:
    chain = (Hold("run", Limit(100), Limit(50)),)
    balance = Balance("run", Limit(50), ZERO, ZERO)
    refused = place(request(*chain, tokens=60), (Account(),), 7).decision
    assert refused == Refused(Refusal.TOO_LARGE, "run", "tokens", 60, balance, 7, balances=(balance,))
    assert resolved_refusal(chain, [Account()], 7) == Refused(
        Refusal.RESOLVED, "run", None, 0, balance, 7, balances=(balance,)
    )
    first = place(request(*chain), (Account(),), 7)
    assert first.reservation is not None
    again = repeat_placement(request(*chain), first.reservation, [Account()], 8).decision
    assert isinstance(again, Granted)
    assert (again.balances, again.now_ms) == ((balance,), 8)


def test_gate_refusal_names_no_unit_and_needs_nothing() -> None:
    paused = replace(request(Hold("run", Limit(100))), demand=Demand(0, 1, 1))
    refused = place(paused, (Account(gate=Gate.PAUSED),), 7).decision
    assert isinstance(refused, Refused)
    assert (refused.reason, refused.unit, refused.needed) == (Refusal.GATE, None, 0)


def test_extend_touches_the_accounts_and_reports_observed_breaches() -> None:
    chain = (Hold("run", Limit(100)), Hold("run~observe", Limit(50), enforce=False))
    first = place(request(*chain), (Account(), Account()), 0)
    assert first.reservation is not None
    grown = extend(first.reservation, chain, Demand(0, 20, 20, requests=0), first.accounts, 5_000)
    assert [account.used_ms for account in grown.accounts] == [5_000, 5_000]
    assert isinstance(grown.decision, Granted)
    assert (grown.decision.now_ms, grown.decision.breaches) == (5_000, ("run~observe",))
    refused = extend(first.reservation, chain, Demand(0, 70, 70, requests=0), first.accounts, 6_000).decision
    assert isinstance(refused, Refused)
    assert (refused.reason, refused.now_ms) == (Refusal.TOO_LARGE, 6_000)
