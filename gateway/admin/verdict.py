"""Whether budgets block a call: the accounts that it would be reserved on, and the first one that blocks it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from gateway.admin.formatting import count, money, window_text
from gateway.budgets.balances import BudgetAccount
from gateway.runs.view import Dollars, Requests, RunView, StepView, Tokens
from policies.budgets import Link

Availability = Literal["free", "busy", "blocked"]
_UNITS: Final = {"tokens": " tokens", "usd": "", "requests": " requests"}


@dataclass(frozen=True, slots=True)
class Meter:
    """One unit of one account. `remaining` counts what is reserved as taken."""

    unit: Literal["tokens", "usd", "requests"]
    limit: float | None
    settled: float
    reserved: float

    @property
    def remaining(self) -> float | None:
        return None if self.limit is None else self.limit - self.settled - self.reserved

    @property
    def share(self) -> float:
        """The share of the limit that is settled or reserved; 0 without a limit."""
        in_use = self.settled + self.reserved
        return 0.0 if self.limit is None else in_use / self.limit if self.limit else 1.0

    @property
    def availability(self) -> Availability:
        """Blocked: the settled amount fills the limit. Busy: only holds, which will be resolved, fill it."""
        if self.limit is None or (self.remaining or 0) > 0:
            return "free"
        return "blocked" if self.settled >= self.limit else "busy"

    def formatted(self, value: float | None) -> str:
        return money(value) if self.unit == "usd" else count(value)

    def formatted_with_unit(self, value: float | None) -> str:
        return self.formatted(value) + _UNITS[self.unit]


@dataclass(frozen=True, slots=True)
class AccountRow:
    """An account that a call would be reserved on, innermost scope first."""

    scope: str
    name: str
    window: str
    is_enforced: bool
    resets_at: str | None
    meters: tuple[Meter, ...]

    @property
    def limited(self) -> tuple[Meter, ...]:
        return tuple(meter for meter in self.meters if meter.limit is not None)

    @property
    def availability(self) -> Availability:
        availabilities = {meter.availability for meter in self.meters} if self.is_enforced else set()
        return "blocked" if "blocked" in availabilities else "busy" if "busy" in availabilities else "free"


@dataclass(frozen=True, slots=True)
class Verdict:
    availability: Availability
    sentence: str


def limits_sentence(limits: Sequence[tuple[AccountRow, Meter]]) -> str:
    """The limits of one scope in a sentence, with the settled and reserved amount of each."""
    row, _ = limits[0]
    descriptions = (
        f"{window_text(row.window)} {meter.formatted(meter.settled)} of {meter.formatted_with_unit(meter.limit)}"
        + (f", {meter.formatted(meter.reserved)} reserved" if meter.reserved else "")
        + ("" if row.is_enforced else ", observed")
        for row, meter in limits
    )
    return f"{row.scope.capitalize()} {row.name}: {'; '.join(descriptions)}"


def verdict(rows: Sequence[AccountRow], run_state: str | None) -> Verdict:
    """The gate of the run first, then the innermost scope, as a refusal would name it."""
    if run_state in ("paused", "cancelled", "completed"):
        advice = "Resume it, and its calls go through." if run_state == "paused" else "A new run id begins a new run."
        return Verdict("blocked", f"The run is {run_state}: every call is refused. {advice}")
    for availability in ("blocked", "busy"):
        for row in rows:
            for meter in row.meters if row.availability == availability else ():
                if meter.availability == availability:
                    return Verdict(row.availability, _sentence(row, meter))
    return _free_verdict(rows)


def _sentence(row: AccountRow, meter: Meter) -> str:
    usage = f"{meter.formatted(meter.settled)} of {meter.formatted_with_unit(meter.limit)}"
    scope_name = f"{row.scope.capitalize()} “{row.name}”"
    if meter.availability == "busy":
        reserved = meter.formatted_with_unit(meter.reserved)
        return f"{scope_name} is full only because of calls under way: {usage} settled, {reserved} reserved."
    advice = " It does not come back by itself: raise it."
    if row.resets_at:
        advice = f" It comes back at {row.resets_at[:16].replace('T', ' ')} UTC."
    return f"{scope_name} has used up its budget: {usage}.{advice}"


def _free_verdict(rows: Sequence[AccountRow]) -> Verdict:
    limited = [(row, meter) for row in rows if row.is_enforced for meter in row.limited]
    if not limited:
        return Verdict("free", "Nothing blocks it: no enforced budget is on its way.")
    row, meter = max(limited, key=lambda pair: pair[1].share)
    remaining = f"{meter.formatted(meter.remaining)} of {meter.formatted_with_unit(meter.limit)}"
    return Verdict("free", f"Nothing blocks it. {row.scope.capitalize()} “{row.name}” has the least left: {remaining}.")


def run_row(run: RunView) -> AccountRow:
    """Of a workflow that is only observed, the limits shown here are those that somebody gave this very run: they are kept."""
    return _run_scope_row("run", run.run, run.tokens, run.cost_usd, run.requests, is_enforced=True)


def step_row(step: StepView, *, is_enforced: bool) -> AccountRow:
    return _run_scope_row("step", step.step, step.tokens, step.cost_usd, None, is_enforced=is_enforced)


def account_row(link: Link, account: BudgetAccount) -> AccountRow:
    meters = (
        Meter("tokens", account.tokens_limit, account.tokens_settled, account.tokens_reserved),
        Meter("usd", account.usd_limit, account.usd_settled, account.usd_reserved),
        Meter("requests", account.requests_limit, account.requests_settled, account.requests_reserved),
    )
    return AccountRow(link.scope.value, link.scope_id, link.window.value, link.hold.enforce, account.resets_at, meters)


def _run_scope_row(
    scope: str, name: str, tokens: Tokens, cost: Dollars, requests: Requests | None, *, is_enforced: bool
) -> AccountRow:
    meters = [
        Meter("tokens", tokens.limit, tokens.settled, tokens.reserved),
        Meter("usd", cost.limit, cost.settled, cost.reserved),
    ]
    if requests is not None:
        meters.append(Meter("requests", requests.limit, requests.settled, requests.reserved))
    return AccountRow(scope, name, "run", is_enforced, None, tuple(meters))
