"""Which accounts a call is reserved on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from policies.amounts import UNLIMITED, ZERO, Amount, Limit
from policies.budgets import (
    ANY_RUN,
    DAY_MS,
    RUN_KEEP_MS,
    TOTAL_KEEP_MS,
    Budget,
    Chain,
    HoldKind,
    Mode,
    OnOutage,
    Parent,
    RunLimits,
    Scope,
    Subject,
    Window,
    chain_for,
)
from policies.pressure import DEFAULT_LADDER, parse_ladder
from policies.reservation import Balance, Granted

NOW = 1_795_000_000_000  # 2026-11-18 06:26:40 UTC
MINUTE = NOW - NOW % 60_000
CALL = Subject("acme", key="ci", workflow="nightly-report", run="r-1", step="draft", agent="writer")
UNTAGGED = Subject("acme", key="ci")
TOKENS = Limit(tokens=100)


def chain(*budgets: Budget, subject: Subject = CALL, limits: RunLimits = RunLimits()) -> Chain:
    return chain_for(subject, budgets, limits, NOW)


def accounts(call_chain: Chain) -> list[str]:
    return [link.hold.account for link in call_chain.links]


def test_tagged_call_is_counted_on_step_and_run_without_a_budget() -> None:
    call_chain = chain()
    assert accounts(call_chain) == ["step/r-1/draft", "run/r-1"]
    assert not call_chain.is_limited
    assert call_chain.survives_outage


def test_steps_with_slashes_in_their_ids_share_no_account() -> None:
    assert accounts(chain(subject=replace(CALL, run="a/b", step="c"))) == ["step/a|b/c", "run/a/b"]
    assert accounts(chain(subject=replace(CALL, run="a", step="b/c"))) == ["step/a/b/c", "run/a"]


@pytest.mark.parametrize("run", ["r-1", "team/a/1"])
def test_chain_for_any_run_converts_to_the_chain_of_each_run(run: str) -> None:
    budgets = (
        Budget(Scope.STEP, TOKENS, on_outage=OnOutage.ALLOW, hold=HoldKind.SLICES, wait_ms=5),
        Budget(Scope.RUN, TOKENS, mode=Mode.OBSERVE),
        Budget(Scope.KEY, TOKENS, window=Window.MINUTE),
    )
    limits = RunLimits(step_soft_tokens=10)
    of_any = chain(*budgets, subject=replace(CALL, run=ANY_RUN), limits=limits)
    assert of_any.for_run(run) == chain(*budgets, subject=replace(CALL, run=run), limits=limits)


def test_untagged_call_without_a_budget_has_an_empty_chain() -> None:
    assert chain(subject=UNTAGGED).links == ()


@pytest.mark.parametrize(
    ("budget", "account"),
    [
        (Budget(Scope.WORKFLOW, TOKENS, window=Window.TOTAL), "workflow/nightly-report@total"),
        (Budget(Scope.AGENT, TOKENS, window=Window.TOTAL), "agent/writer@total"),
        (Budget(Scope.KEY, TOKENS, window=Window.MINUTE), f"key/ci@minute:{MINUTE}"),
        (Budget(Scope.PROJECT, TOKENS, window=Window.TOTAL), "project/acme@total"),
    ],
)
def test_budget_of_each_scope_adds_its_own_account(budget: Budget, account: str) -> None:
    call_chain = chain(budget)
    assert accounts(call_chain) == ["step/r-1/draft", "run/r-1", account]
    assert call_chain.link(account).hold.limit == TOKENS


@pytest.mark.parametrize(
    ("scope", "match", "applies"),
    [
        (Scope.RUN, "nightly-*", True),
        (Scope.RUN, "weekly-*", False),
        (Scope.STEP, "nightly-report", True),
        (Scope.STEP, "nightly-report/draft", True),
        (Scope.STEP, "*/draft", True),
        (Scope.STEP, "*/send", False),
        (Scope.KEY, "CI", False),
        (Scope.PROJECT, "acme", True),
    ],
)
def test_budget_matches_by_case_sensitive_glob(scope: Scope, match: str, applies: bool) -> None:
    window = Window.RUN if scope in (Scope.RUN, Scope.STEP) else Window.TOTAL
    assert chain(Budget(scope, TOKENS, match=match, window=window)).is_limited is applies


def test_two_budgets_on_one_account_apply_the_smaller_limit_in_each_unit() -> None:
    call_chain = chain(
        Budget(Scope.RUN, Limit(tokens=100, nano_usd=5)), Budget(Scope.RUN, Limit(tokens=70, requests=3))
    )
    assert call_chain.link("run/r-1").hold.limit == Limit(70, 5, 3)


def test_budget_of_another_project_does_not_apply() -> None:
    assert not chain(Budget(Scope.RUN, TOKENS, project="other")).is_limited
    assert chain(Budget(Scope.RUN, TOKENS, project="acme")).is_limited


def test_minute_window_resets_at_the_next_minute() -> None:
    link = chain(Budget(Scope.KEY, TOKENS, window=Window.MINUTE)).links[-1]
    assert link.resets_at_ms == MINUTE + 60_000


def test_day_window_resets_at_midnight_of_the_budgets_time_zone() -> None:
    link = chain(Budget(Scope.KEY, TOKENS, window=Window.DAY, timezone="Asia/Kolkata")).links[-1]
    assert link.resets_at_ms == 1_795_026_600_000  # 2026-11-18 18:30 UTC is midnight there


def test_windows_of_two_time_zones_that_begin_together_end_with_the_first_of_them() -> None:
    """On 2026-03-29 London's clocks go forward at 01:00 UTC, so its day begins with that of UTC and ends an hour before it."""
    noon, end_in_london = 1_774_785_600_000, 1_774_825_200_000
    utc, london = (Budget(Scope.KEY, TOKENS, window=Window.DAY, timezone=zone) for zone in ("UTC", "Europe/London"))
    for budgets in ((utc, london), (london, utc)):
        assert chain_for(UNTAGGED, budgets, RunLimits(), noon).ends_at_ms() == end_in_london
        after = chain_for(UNTAGGED, budgets, RunLimits(), end_in_london)
        assert sorted(accounts(after)) == ["key/ci@day:1774742400000", "key/ci@day:1774825200000"]


def test_observed_budget_counts_on_an_account_beside_the_enforced_one() -> None:
    call_chain = chain(Budget(Scope.RUN, TOKENS), Budget(Scope.RUN, Limit(tokens=10), mode=Mode.OBSERVE))
    assert call_chain.link("run/r-1").hold.limit == TOKENS
    watched = call_chain.link("run/r-1~observe").hold
    assert (watched.limit, watched.enforce) == (Limit(tokens=10), False)


def test_observing_workflow_still_enforces_header_limits_and_project_budgets() -> None:
    limits = RunLimits(tightened=Limit(tokens=50), planned_step=Limit(tokens=9), observe=True)
    call_chain = chain(Budget(Scope.RUN, TOKENS), Budget(Scope.PROJECT, TOKENS, window=Window.TOTAL), limits=limits)
    enforced = {
        link.hold.account
        for link in call_chain.links
        if link.hold.enforce and not (link.hold.limit.is_unlimited and link.hold.tighten.is_unlimited)
    }
    assert enforced == {"run/r-1", "project/acme@total"}
    assert call_chain.link("run/r-1").hold.tighten == Limit(tokens=50)
    assert call_chain.link("step/r-1/draft~observe").hold.limit == Limit(tokens=9)


def test_plan_limits_run_and_step() -> None:
    limits = RunLimits(planned_run=Limit(tokens=20), planned_step=Limit(tokens=12), step_soft_tokens=10)
    call_chain = chain(Budget(Scope.STEP, Limit(tokens=15)), limits=limits)
    step = call_chain.link("step/r-1/draft")
    assert (step.hold.limit, step.soft_tokens) == (Limit(tokens=12), 10)
    assert call_chain.link("run/r-1").hold.limit == Limit(tokens=20)


def test_child_run_is_counted_within_its_parents_budget() -> None:
    child = Subject("acme", workflow="sub", run="child", step="s", parents=(Parent("r-1", "nightly-report"),))
    call_chain = chain(Budget(Scope.RUN, TOKENS, match="nightly-*"), subject=child)
    assert accounts(call_chain) == ["step/child/s", "run/child", "run/r-1"]
    assert call_chain.link("run/r-1").hold.limit == TOKENS
    assert call_chain.link("run/child").hold.limit == UNLIMITED


@pytest.mark.parametrize(
    ("planned", "observe", "limit"),
    [(Limit(tokens=60), False, Limit(tokens=60)), (Limit(tokens=600), False, TOKENS), (TOKENS, True, UNLIMITED)],
)
def test_planned_limit_of_a_parent_applies_to_its_children(planned: Limit, observe: bool, limit: Limit) -> None:
    parent = Parent("r-1", "nightly-report", planned, observe)
    call_chain = chain(
        Budget(Scope.RUN, TOKENS, match="nightly-*"), subject=replace(CALL, run="child", parents=(parent,))
    )
    assert call_chain.link("run/r-1").hold.limit == limit


def test_innermost_budget_sets_ladder_hold_and_wait() -> None:
    outer = Budget(Scope.PROJECT, TOKENS, window=Window.TOTAL, on_pressure=parse_ladder(["refuse"]))
    inner = Budget(Scope.STEP, TOKENS, on_pressure=parse_ladder(["clamp", "refuse"]), hold=HoldKind.SLICES, wait_ms=5)
    call_chain = chain(inner, outer)
    assert (call_chain.ladder, call_chain.hold, call_chain.wait_ms) == (
        parse_ladder(["clamp", "refuse"]),
        HoldKind.SLICES,
        5,
    )
    assert chain().ladder == DEFAULT_LADDER


@pytest.mark.parametrize(
    ("budgets", "limits", "survives"),
    [
        ([Budget(Scope.RUN, TOKENS, on_outage=OnOutage.ALLOW)], RunLimits(), True),
        ([Budget(Scope.RUN, TOKENS)], RunLimits(), False),
        ([Budget(Scope.RUN, TOKENS, on_outage=OnOutage.ALLOW), Budget(Scope.STEP, TOKENS)], RunLimits(), False),
        ([Budget(Scope.RUN, TOKENS, on_outage=OnOutage.ALLOW)], RunLimits(tightened=TOKENS), False),
        ([Budget(Scope.RUN, TOKENS, mode=Mode.OBSERVE)], RunLimits(), True),
    ],
)
def test_call_survives_an_outage_only_if_every_enforced_limit_allows_it(
    budgets: list[Budget], limits: RunLimits, survives: bool
) -> None:
    assert chain(*budgets, limits=limits).survives_outage is survives


@pytest.mark.parametrize(
    ("window", "keep_ms"),
    [
        (Window.MINUTE, DAY_MS),
        (Window.HOUR, 2 * DAY_MS),
        (Window.DAY, 3 * DAY_MS),
        (Window.MONTH, 40 * DAY_MS),
        (Window.TOTAL, TOTAL_KEEP_MS),
    ],
)
def test_keep_time_of_an_account_depends_on_its_window(window: Window, keep_ms: int) -> None:
    link = chain(Budget(Scope.KEY, TOKENS, window=window)).links[-1]
    assert (link.hold.keep_ms, link.window, link.scope, link.scope_id) == (keep_ms, window, Scope.KEY, "ci")


def test_step_run_and_parent_accounts_are_kept_for_the_keep_time_of_runs() -> None:
    call_chain = chain(subject=replace(CALL, parents=(Parent("r-0", "weekly"),)))
    assert [link.hold.keep_ms for link in call_chain.links] == [RUN_KEEP_MS] * 3
    parent = call_chain.links[-1]
    assert (parent.scope, parent.scope_id, parent.window) == (Scope.RUN, "r-0", Window.RUN)


def test_only_the_step_account_has_a_soft_limit() -> None:
    call_chain = chain(Budget(Scope.KEY, TOKENS, window=Window.TOTAL), limits=RunLimits(step_soft_tokens=10))
    assert [link.soft_tokens for link in call_chain.links] == [10, None, None]


def test_only_enforced_run_budgets_of_the_project_limit_a_parent() -> None:
    child = replace(CALL, run="child", parents=(Parent("r-1", "nightly-report"),))
    others = (
        Budget(Scope.WORKFLOW, TOKENS, window=Window.TOTAL),
        Budget(Scope.RUN, TOKENS, mode=Mode.OBSERVE),
        Budget(Scope.RUN, TOKENS, match="weekly"),
        Budget(Scope.RUN, TOKENS, project="other"),
    )
    assert chain(*others, subject=child).link("run/r-1").hold.limit == UNLIMITED
    mine = Budget(Scope.RUN, TOKENS, project="acme")
    assert chain(mine, subject=child).link("run/r-1").hold.limit == TOKENS


def test_budget_on_a_scope_the_call_does_not_name_does_not_apply() -> None:
    everything = [Budget(scope, TOKENS, window=Window.TOTAL) for scope in (Scope.WORKFLOW, Scope.AGENT, Scope.KEY)]
    steps = [Budget(Scope.RUN, TOKENS), Budget(Scope.STEP, TOKENS)]
    assert chain(*everything, *steps, subject=Subject("acme")).links == ()
    assert accounts(chain(*everything, *steps, subject=UNTAGGED)) == ["key/ci@total"]


def test_observing_workflow_only_observes_the_workflow_budget() -> None:
    call_chain = chain(Budget(Scope.WORKFLOW, TOKENS, window=Window.TOTAL), limits=RunLimits(observe=True))
    assert accounts(call_chain)[-1] == "workflow/nightly-report@total~observe"
    assert not call_chain.is_enforced


@pytest.mark.parametrize(
    ("run_limit", "observe", "own_limit", "held", "is_bound"),
    [
        pytest.param(TOKENS, False, UNLIMITED, Amount(requests=1), True, id="by its chain"),
        pytest.param(TOKENS, True, UNLIMITED, Amount(requests=1), False, id="only observed"),
        pytest.param(UNLIMITED, False, TOKENS, Amount(requests=1), True, id="by the run's own budget"),
        pytest.param(UNLIMITED, False, UNLIMITED, Amount(requests=1), False, id="by nothing"),
        pytest.param(TOKENS, False, TOKENS, ZERO, False, id="without a hold"),
    ],
)
def test_chain_binds_a_call_that_an_enforced_budget_limits(
    run_limit: Limit, observe: bool, own_limit: Limit, held: Amount, is_bound: bool
) -> None:
    call_chain = chain(Budget(Scope.RUN, run_limit, mode=Mode.OBSERVE if observe else Mode.ENFORCE))
    balances = tuple(
        Balance(hold.account, hold.limit.replaced_by(own_limit if hold.account == "run/r-1" else UNLIMITED), ZERO, ZERO)
        for hold in call_chain.holds
    )
    assert call_chain.binds(Granted("c", 16, held, 0, 0, balances)) is is_bound


@pytest.mark.parametrize(
    ("limit", "tighten", "money"),
    [(TOKENS, UNLIMITED, False), (Limit(nano_usd=1), UNLIMITED, True), (TOKENS, Limit(nano_usd=1), True)],
)
def test_chain_knows_whether_it_limits_money(limit: Limit, tighten: Limit, money: bool) -> None:
    call_chain = chain(Budget(Scope.STEP, limit), Budget(Scope.RUN, TOKENS), limits=RunLimits(tightened=tighten))
    assert (call_chain.limits_money, call_chain.is_limited, call_chain.is_enforced) == (money, True, True)
    assert call_chain.holds == tuple(link.hold for link in call_chain.links)


def test_chain_ends_with_its_earliest_window() -> None:
    key = [Budget(Scope.KEY, TOKENS, window=window) for window in (Window.TOTAL, Window.MONTH, Window.MINUTE)]
    assert chain(*key).ends_at_ms() == MINUTE + 60_000
    assert chain(*key[:1]).ends_at_ms() is None


def test_enforced_link_of_a_scope_is_the_innermost() -> None:
    call_chain = chain(
        Budget(Scope.RUN, TOKENS, mode=Mode.OBSERVE), subject=replace(CALL, parents=(Parent("r-0", "weekly"),))
    )
    run = call_chain.enforced_link(Scope.RUN)
    assert run is not None
    assert run.hold.account == "run/r-1"
    assert call_chain.enforced_link(Scope.AGENT) is None


def test_workflow_ladder_takes_precedence_over_the_ladder_of_a_budget() -> None:
    budget = Budget(Scope.RUN, TOKENS, on_pressure=parse_ladder(["refuse"]))
    assert chain(budget, limits=RunLimits(ladder=parse_ladder(["clamp", "refuse"]))).ladder == parse_ladder(
        ["clamp", "refuse"]
    )
    assert chain().wait_ms == 0
