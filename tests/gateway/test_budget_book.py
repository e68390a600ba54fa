"""The chain that a call is reserved on: cached for the calls of a step, and never stale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.budgets.budget_book import BudgetBook, key_budgets
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
        principal=Principal("k1", "ci", "default", budgets=key_budgets("default", limits)),
        request=Request(body={}, model="m"),
        tags=Tags("w", "r"),
        run="r",
    )


def key_limit(chain: Chain) -> Limit | None:
    link = chain.enforced_link(Scope.KEY)
    return None if link is None else link.hold.limit


def test_changed_key_limits_apply_to_new_calls_and_not_to_earlier_ones() -> None:
    book = BudgetBook((), first_snapshot)
    early, late = call_of_key({}), call_of_key({"tokens": 100})
    for call, limit in ((early, None), (late, Limit(tokens=100)), (early, None), (late, Limit(tokens=100))):
        assert key_limit(book.chain(call, (), RunLimits(), NOW_MS)) == limit


def test_calls_with_the_same_key_share_its_link() -> None:
    book = BudgetBook((), first_snapshot)
    first, second = (book.chain(call_of_key({"tokens": 100}), (), RunLimits(), NOW_MS) for _ in range(2))
    assert first.links[-1] is second.links[-1], "the link of the key, which does not depend on the run"


def test_tightened_limit_of_one_call_is_not_in_the_chain_of_the_next() -> None:
    book = BudgetBook((), first_snapshot)
    call = call_of_key({})
    tight = book.chain(call, (), RunLimits(tightened=Limit(tokens=5)), NOW_MS)
    loose = book.chain(call, (), RunLimits(), NOW_MS)
    assert [link.hold.tighten for link in tight.links if link.scope is Scope.RUN] == [Limit(tokens=5)]
    assert [link.hold.tighten for link in loose.links if link.scope is Scope.RUN] == [Limit()]


def test_next_window_has_another_account() -> None:
    book = BudgetBook((), first_snapshot)
    call = call_of_key({"tokens": 100, "window": "minute"})
    now, later = (
        book.chain(call, (), RunLimits(), at_ms).links[-1].hold.account for at_ms in (NOW_MS, NOW_MS + 60_000)
    )
    assert now != later
    assert now.startswith("key/ci@minute:")


def test_key_has_a_budget_only_if_it_has_limits() -> None:
    assert key_budgets("default", {"concurrency": 3}) == ()
    (own,) = key_budgets("default", {"usd": 2})
    assert own == Budget(Scope.KEY, Limit(nano_usd=2_000_000_000), window=own.window, project="default")
