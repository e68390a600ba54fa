from __future__ import annotations

import pytest

from gateway.ledger.allowance import Allowance
from policies.amounts import UNLIMITED, Amount, Limit
from policies.reservation import Balance, Demand, Gate, Granted, Hold, Refusal, Refused, Reserve

NOW_MS = 1_750_000_000_000
RUN = "run:r"


def ask(
    name: str, count: int, *, limit: Limit = UNLIMITED, tighten: Limit = UNLIMITED, enforce: bool = True
) -> Reserve:
    hold = Hold(RUN, limit, tighten, enforce)
    return Reserve(name, "gateway-1", (hold,), Demand(0, count, count, requests=0), 60_000, b"{}")


def tokens(count: int) -> Amount:
    return Amount(tokens=count)


def balance_of(limit: int | None, settled: int = 0, reserved: int = 0, gate: Gate = Gate.OPEN) -> Balance:
    return Balance(RUN, Limit(tokens=limit), tokens(settled), tokens(reserved), gate)


def fits(allowance: Allowance, request: Reserve) -> bool:
    return isinstance(allowance.reserve("p", request, NOW_MS), Granted)


@pytest.mark.parametrize(
    ("balance", "request_limit", "tighten", "processes", "most"),
    [
        pytest.param(balance_of(100), None, None, 1, 100, id="full-limit"),
        pytest.param(balance_of(100, 30, 20), None, None, 1, 50, id="less-settled-and-reserved"),
        pytest.param(balance_of(100, 30, 20), None, None, 3, 16, id="divided-and-rounded-down"),
        pytest.param(balance_of(100, 130), None, None, 1, 0, id="overrun"),
        pytest.param(balance_of(100, 30), None, 60, 2, 15, id="tightened-by-this-call"),
        pytest.param(balance_of(100), 500, None, 1, 100, id="last-balance-wins-over-configured-limit"),
        pytest.param(None, 80, None, 4, 20, id="unknown-account"),
        pytest.param(None, 80, 40, 4, 10, id="unknown-account-tightened"),
    ],
)
def test_allowance_is_the_unspent_part_of_the_limit_divided_among_processes(
    balance: Balance | None, request_limit: int | None, tighten: int | None, processes: int, most: int
) -> None:
    allowance = Allowance()
    if balance is not None:
        allowance.record_balances("p", [balance])
    allowance.start_outage(processes)
    narrowed_limit, narrower = Limit(tokens=request_limit), Limit(tokens=tighten)
    assert not fits(allowance, ask("more", most + 1, limit=narrowed_limit, tighten=narrower))
    assert most == 0 or fits(allowance, ask("most", most, limit=narrowed_limit, tighten=narrower))


def test_unlimited_account_grants_any_amount() -> None:
    allowance = Allowance()
    allowance.start_outage(4)
    assert fits(allowance, ask("c1", 10**9))


def test_observed_budget_grants_and_reports_the_breach() -> None:
    allowance = Allowance()
    allowance.record_balances("p", [balance_of(100, 100)])
    allowance.start_outage(1)
    decision = allowance.reserve("p", ask("c1", 10, enforce=False), NOW_MS)
    assert isinstance(decision, Granted)
    assert decision.breaches == (RUN,)


def test_paused_run_is_refused() -> None:
    allowance = Allowance()
    allowance.record_balances("p", [balance_of(100, gate=Gate.PAUSED)])
    allowance.start_outage(1)
    no = allowance.reserve("p", ask("c1", 1), NOW_MS)
    assert isinstance(no, Refused)
    assert no.reason is Refusal.GATE


def test_settled_amount_stays_used_and_the_rest_is_released() -> None:
    allowance = Allowance()
    allowance.record_balances("p", [balance_of(100)])
    allowance.start_outage(1)
    assert fits(allowance, ask("c1", 100))
    assert allowance.resolve("p", "c1", tokens(60)) == tokens(100)
    assert not fits(allowance, ask("c2", 41))
    assert fits(allowance, ask("c3", 40))


def test_overrun_reduces_the_allowance() -> None:
    allowance = Allowance()
    allowance.record_balances("p", [balance_of(100)])
    allowance.start_outage(1)
    assert fits(allowance, ask("c1", 50))
    allowance.resolve("p", "c1", tokens(70))
    assert not fits(allowance, ask("c2", 31))


def test_second_outage_counts_holds_still_open_from_the_first() -> None:
    allowance = Allowance()
    allowance.record_balances("p", [balance_of(100)])
    allowance.start_outage(1)
    assert fits(allowance, ask("c1", 70))
    allowance.start_outage(1)
    assert not fits(allowance, ask("c2", 31))
    allowance.resolve("p", "c1", tokens(0))
    assert fits(allowance, ask("c3", 100))


def test_resolving_a_ledger_hold_releases_only_its_extension() -> None:
    """A hold of 40 that the ledger granted is extended by 30 here: resolving it releases 30 here, and 40 in the ledger."""
    allowance = Allowance()
    request = ask("c1", 40, limit=Limit(tokens=100))
    balance = balance_of(100, reserved=40)
    allowance.record_balances("p", [balance])
    allowance.start_outage(1)
    granted = Granted("c1", 40, tokens(40), NOW_MS + 60_000, NOW_MS, (balance,))
    allowance.adopt("p", granted, request)
    more = allowance.extend("p", "c1", request.holds, Demand(0, 30, 30, requests=0), NOW_MS)
    assert isinstance(more, Granted)
    assert more.held == tokens(70)
    assert not allowance.is_local("p", "c1")
    assert not fits(allowance, ask("c2", 31))
    assert allowance.resolve("p", "c1", tokens(50)) == tokens(70)
    assert not fits(allowance, ask("c3", 51))
    assert fits(allowance, ask("c4", 50))


def test_projects_have_separate_allowances() -> None:
    allowance = Allowance()
    allowance.record_balances("p", [balance_of(10)])
    allowance.start_outage(1)
    assert not fits(allowance, ask("c1", 11, limit=Limit(tokens=100)))
    assert isinstance(allowance.reserve("q", ask("c1", 11, limit=Limit(tokens=100)), NOW_MS), Granted)
