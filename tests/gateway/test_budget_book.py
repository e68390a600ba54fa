"""Which chain a call is reserved on: made once for the calls of a step, and never with what counted before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.budget_book import BudgetBook, key_budgets
from gateway.control import first_snapshot
from gateway.pipeline.call import Call, Principal
from gateway.tags import Tags
from gateway.wire.protocol import Request
from gateway.wire.protocols import PROTOCOLS
from policies.amounts import Limit
from policies.budgets import Budget, Chain, RunLimits, Scope

NOW_MS = 1_795_000_000_000


def call_of_key(limits: Mapping[str, Any]) -> Call:
    return Call(
        id="id-1",
        protocol=PROTOCOLS["/v1/chat/completions"],
        principal=Principal("k1", "ci", "default", budgets=key_budgets("ci", "default", limits)),
        request=Request(body={}, model="m"),
        tags=Tags("w", "r"),
        run="r",
    )


def key_limit(chain: Chain) -> Limit | None:
    link = chain.enforced_link(Scope.KEY)
    return None if link is None else link.hold.limit


def test_a_call_that_began_before_its_key_was_changed_leaves_the_old_limits_to_nobody() -> None:
    book = BudgetBook((), first_snapshot)
    early, late = call_of_key({}), call_of_key({"tokens": 100})
    for call, limit in ((early, None), (late, Limit(tokens=100)), (early, None), (late, Limit(tokens=100))):
        assert key_limit(book.chain(call, (), RunLimits(), NOW_MS)) == limit


def test_the_calls_of_a_step_have_one_chain() -> None:
    book = BudgetBook((), first_snapshot)
    one, other = (book.chain(call_of_key({"tokens": 100}), (), RunLimits(), NOW_MS) for _ in range(2))
    assert one.links[-1] is other.links[-1], "the key's, which knows no run"


def test_limits_of_a_run_go_into_no_other_runs_chain() -> None:
    book = BudgetBook((), first_snapshot)
    call = call_of_key({})
    tight = book.chain(call, (), RunLimits(tightened=Limit(tokens=5)), NOW_MS)
    loose = book.chain(call, (), RunLimits(), NOW_MS)
    assert [link.hold.tighten for link in tight.links if link.scope is Scope.RUN] == [Limit(tokens=5)]
    assert [link.hold.tighten for link in loose.links if link.scope is Scope.RUN] == [Limit()]


def test_a_window_that_ends_begins_another_account() -> None:
    book = BudgetBook((), first_snapshot)
    call = call_of_key({"tokens": 100, "window": "minute"})
    now, later = (
        book.chain(call, (), RunLimits(), at_ms).links[-1].hold.account for at_ms in (NOW_MS, NOW_MS + 60_000)
    )
    assert now != later
    assert now.startswith("key/ci@minute:")


def test_a_key_without_limits_has_no_budget_of_its_own() -> None:
    assert key_budgets("ci", "default", {"concurrency": 3}) == ()
    (own,) = key_budgets("ci", "default", {"usd": 2})
    assert own == Budget(Scope.KEY, Limit(nano_usd=2_000_000_000), window=own.window, project="default")
