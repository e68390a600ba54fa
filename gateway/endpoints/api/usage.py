"""/api/usage: usage, grouped and filtered, as JSON or CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.responses import Response

from gateway.endpoints.api.route import ApiRequest, ApiServices, Route
from gateway.endpoints.api.schema import LIST_MAX, Instant, ListQuery, NoBody, Wanted, in_ms, page_start
from gateway.errors import BadRequest
from gateway.store import usage_report
from gateway.store.keys import ApiKey
from gateway.store.runs import Sums
from gateway.store.usage_csv import to_csv
from gateway.store.usage_report import GroupBy, ReportRow, UsageFilter
from policies.amounts import usd
from policies.holdout import Arm

CSV_ROWS_MAX = 100_000
# More than there are combinations of actions, since both sides of the comparison are summed over all of them.
KINDS_MAX = 2_000


class UsageQuery(ListQuery):
    """An empty value selects calls without that name. `from` is inclusive, `to` exclusive."""

    limit: Annotated[int, Field(ge=1, le=10 * LIST_MAX)] = Field(
        default=100, description=f"Of CSV, where it is left out: all rows, up to {CSV_ROWS_MAX:,}."
    )
    group_by: GroupBy = GroupBy.WORKFLOW
    workflow: Wanted | None = None
    run: Wanted | None = None
    step: Wanted | None = None
    agent: Wanted | None = None
    key: Wanted | None = Field(default=None, description="A key's id or name.")
    intent: Wanted | None = None
    model: Wanted | None = None
    since: Instant | None = Field(default=None, alias="from")
    until: Instant | None = Field(default=None, alias="to")
    format: Literal["json", "csv"] | None = None


@dataclass(frozen=True, slots=True)
class UsageTotals:
    calls: int
    refused: int
    errors: int
    input_tokens: int
    output_tokens: int
    total_tokens: int
    cost_usd: float
    requests: int
    saved_tokens: int
    saved_usd: float
    overrun_tokens: int
    overrun_usd: float


@dataclass(frozen=True, slots=True)
class UsageRow(UsageTotals):
    """The group is in the field that `group_by` names, and the other names are left out; `key_name` comes with `key`."""

    workflow: str | None = None
    run: str | None = None
    step: str | None = None
    agent: str | None = None
    intent: str | None = None
    model: str | None = None
    key: str | None = None
    key_name: str | None = None
    day: str | None = None
    savings: str | None = None


@dataclass(frozen=True, slots=True)
class ArmUsage(UsageTotals):
    """The calls of one side of the comparison. Means are per answered call."""

    input_tokens_per_call: float
    output_tokens_per_call: float
    cost_usd_per_call: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """What compression and routing save, measured: treated runs compared with those held out (`savings.holdout_share`).

    Shares are 1 − treated ÷ held out, per call, and left out while a side has no call. They are the more reliable, the more numerous and
    alike the calls are. `saved_tokens` counts what each call would have sent otherwise; these figures compare whole runs.
    """

    treated: ArmUsage
    holdout: ArmUsage
    input_tokens_saved_share: float | None
    cost_saved_share: float | None


@dataclass(frozen=True, slots=True)
class UsageReport:
    """Groups are sorted by tokens, the largest first, and days by date. `total` covers all `groups`, shown or not. `comparison` is
    present for `savings` once runs were held out."""

    group_by: str
    rows: tuple[UsageRow, ...]
    total: UsageTotals
    groups: int
    next: str | None = None
    comparison: Comparison | None = None


async def get_usage(request: ApiRequest[UsageQuery, NoBody]) -> UsageReport | Response:
    query = request.query
    await request.services.catch_up()
    usage_filter = filter_of(request.services, query)
    is_csv = query.format == "csv" or (query.format is None and "text/csv" in request.accept)
    is_whole = is_csv and "limit" not in query.model_fields_set
    start = page_start(query.cursor)
    end = start + (CSV_ROWS_MAX if is_whole else query.limit)
    is_compared = query.group_by is GroupBy.SAVINGS
    report = await usage_report.report(
        request.store, query.group_by, usage_filter, max(end, KINDS_MAX) if is_compared else end
    )
    names = {key.id: key.name for key in request.services.parts.control.snapshot.keys.values()}
    if is_csv:
        return _as_csv(query.group_by, report.rows[start:end], names)
    rows = tuple(_row(query.group_by, row.group, row.sums, names) for row in report.rows[start:end])
    following = str(end) if report.groups > end else None
    total = UsageTotals(**figures(report.total))
    compared = comparison_of(report.rows) if is_compared else None
    return UsageReport(query.group_by.value, rows, total, report.groups, following, compared)


def _as_csv(group_by: GroupBy, rows: Sequence[ReportRow], key_names: Mapping[str, str]) -> Response:
    headers = {"content-disposition": f'attachment; filename="usage-by-{group_by.value}.csv"'}
    text = to_csv(group_by.value, rows, key_names if group_by is GroupBy.KEY else None)
    return Response(text, media_type="text/csv; charset=utf-8", headers=headers)


def filter_of(services: ApiServices, query: UsageQuery) -> UsageFilter:
    """The filter of a query. Raises BadRequest for a range that ends before it begins, and for a name that several keys have."""
    from_ms, to_ms = in_ms(query.since), in_ms(query.until)
    if from_ms is not None and to_ms is not None and from_ms >= to_ms:
        raise BadRequest.field("from", "must be before to")
    return UsageFilter(
        project=query.project,
        workflow=query.workflow,
        run=query.run,
        step=query.step,
        agent=query.agent,
        key=_key_id(query.key, list(services.parts.control.snapshot.keys.values())),
        intent=query.intent,
        model=query.model,
        from_ms=from_ms,
        to_ms=to_ms,
    )


def comparison_of(rows: Sequence[ReportRow]) -> Comparison | None:
    sides = {arm: [row.sums for row in rows if arm in row.group.split("+")] for arm in Arm}
    if not sides[Arm.HOLDOUT]:
        return None
    treated, holdout = (_arm_usage(sides[arm]) for arm in (Arm.TREATED, Arm.HOLDOUT))
    return Comparison(
        treated,
        holdout,
        _saved_share(treated, holdout, "input_tokens"),
        _saved_share(treated, holdout, "cost_usd"),
    )


def _arm_usage(sums_of_arm: Sequence[Sums]) -> ArmUsage:
    total = Sums(**{name: sum(getattr(sums, name) for sums in sums_of_arm) for name in Sums.__slots__})
    answered = max(1, total.calls - total.errors)
    return ArmUsage(
        **figures(total),
        input_tokens_per_call=round(total.input_tokens / answered, 2),
        output_tokens_per_call=round(total.output_tokens / answered, 2),
        cost_usd_per_call=usd(total.cost_nano_usd // answered),
    )


def _saved_share(treated: ArmUsage, holdout: ArmUsage, figure: str) -> float | None:
    """From the sums and not from the means, which are rounded."""
    treated_calls, holdout_calls = treated.calls - treated.errors, holdout.calls - holdout.errors
    treated_use, holdout_use = getattr(treated, figure) * holdout_calls, getattr(holdout, figure) * treated_calls
    return round(1 - treated_use / holdout_use, 4) if treated_calls and holdout_use else None


def _key_id(id_or_name: str | None, keys: list[ApiKey]) -> str | None:
    if not id_or_name or any(key.id == id_or_name for key in keys):
        return id_or_name
    ids = sorted({key.id for key in keys if key.name == id_or_name})
    if len(ids) > 1:
        raise BadRequest.field("key", f"{len(ids)} keys have this name: {', '.join(ids[:5])}")
    return ids[0] if ids else id_or_name


def _row(group_by: GroupBy, group: str, sums: Sums, key_names: dict[str, str]) -> UsageRow:
    names: dict[str, Any] = {group_by.value: group}
    if group_by is GroupBy.KEY:
        names["key_name"] = key_names.get(group)
    return UsageRow(**figures(sums), **names)


def figures(sums: Sums) -> dict[str, Any]:
    return {
        "calls": sums.calls,
        "refused": sums.refused,
        "errors": sums.errors,
        "input_tokens": sums.input_tokens,
        "output_tokens": sums.output_tokens,
        "total_tokens": sums.total_tokens,
        "cost_usd": usd(sums.cost_nano_usd),
        "requests": sums.requests,
        "saved_tokens": sums.saved_tokens,
        "saved_usd": usd(sums.saved_nano_usd),
        "overrun_tokens": sums.overrun_tokens,
        "overrun_usd": usd(sums.overrun_nano_usd),
    }


ROUTES = (
    Route(
        "GET",
        "/usage",
        get_usage,
        UsageReport,
        "Usage by workflow, run, step, agent, intent, model, key, day or savings, as JSON or CSV.",
        UsageQuery,
        csv=True,
        omits_null=True,
    ),
)
