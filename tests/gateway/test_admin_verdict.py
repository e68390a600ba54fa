"""The verdict on a call that nothing blocks: which budget on its way has the least left."""

from __future__ import annotations

from gateway.admin.verdict import AccountRow, Meter, verdict


def row(scope: str, *meters: Meter, is_enforced: bool = True) -> AccountRow:
    return AccountRow(scope, f"a-{scope}", "day", is_enforced=is_enforced, resets_at=None, meters=meters)


def test_least_left_is_found_by_share_across_tokens_and_dollars() -> None:
    run = row("run", Meter("tokens", 20_000, 43, 0), Meter("usd", 0.5, 0.0, 0.0))
    workflow = row("workflow", Meter("usd", 10.0, 7.5, 1.0))
    watched = row("project", Meter("usd", 1.0, 0.99, 0.0), is_enforced=False)
    shown = verdict([run, workflow, watched], "active")
    assert shown.availability == "free"
    assert shown.sentence == "Nothing blocks it. Workflow “a-workflow” has the least left: $1.50 of $10.00."


def test_call_without_an_enforced_budget_is_not_blocked() -> None:
    shown = verdict([row("run", Meter("tokens", None, 43, 0))], None)
    assert shown.sentence == "Nothing blocks it: no enforced budget is on its way."
