"""/api/usage of a running gateway: every grouping, its pages, and the same as CSV."""

from __future__ import annotations

import csv
import io

import pytest

from gateway.endpoints.api.usage import comparison_of
from gateway.store.runs import Sums
from gateway.store.usage_report import ReportRow
from tests.api_client import Api

pytest_plugins = ("tests.api_fixtures",)


async def test_usage_totals_are_equal_in_every_grouping(api: Api) -> None:
    for run, step in (("r1", "a"), ("r1", "b"), ("r2", "a")):
        await api.chat(run, step)
    totals = None
    for group in ("workflow", "run", "step", "agent", "intent", "model", "key", "day", "savings"):
        report = await api.get("/api/usage", params={"group_by": group})
        assert sum(row["total_tokens"] for row in report["rows"]) == report["total"]["total_tokens"] > 0
        assert all(group in row for row in report["rows"])
        totals = totals or report["total"]
        assert report["total"] == totals, group
    rows = (await api.get("/api/usage?group_by=step&run=r1"))["rows"]
    assert {(row["step"], row["calls"]) for row in rows} == {("a", 1), ("b", 1)}
    assert (await api.get("/api/usage?from=2030-01-01"))["rows"] == []
    page = await api.get("/api/usage?group_by=run&limit=1")
    second_page = await api.get(f"/api/usage?group_by=run&limit=1&cursor={page['next']}")
    assert {page["rows"][0]["run"], second_page["rows"][0]["run"]} == {"r1", "r2"}
    assert "next" not in second_page
    for query in ("group_by=color", "from=2026-02-01&to=2026-01-01", "format=xml"):
        assert (await api.refused("GET", f"/api/usage?{query}"))[0] == 400, query


async def test_usage_from_2000_to_2100_is_all_of_it(api: Api) -> None:
    await api.chat("r1", "a")
    assert (await api.get("/api/usage?from=2000-01-01&to=2100-01-01"))["total"]["calls"] == 1
    assert (await api.refused("GET", "/api/usage?to=2100-01-02"))[0] == 400


async def test_csv_cells_that_look_like_formulas_are_escaped(api: Api) -> None:
    await api.chat("r1", "-cmd@x")
    asked = (
        {"params": {"group_by": "step", "format": "csv"}},
        {"params": {"group_by": "step"}, "headers": {"accept": "text/csv"}},
    )
    for options in asked:
        reply = await api.ask("GET", "/api/usage", **options)
        assert reply.headers["content-type"].startswith("text/csv")
        rows = list(csv.DictReader(io.StringIO(reply.text)))
        assert [row["step"] for row in rows] == ["'-cmd@x"]
        assert rows[0]["calls"] == "1"


async def csv_rows(api: Api, query: str) -> list[dict[str, str]]:
    reply = await api.ask("GET", f"/api/usage?format=csv&{query}")
    assert reply.status_code == 200, reply.text
    return list(csv.DictReader(io.StringIO(reply.text)))


@pytest.mark.parametrize("group", ["run", "key", "day", "savings"])
async def test_csv_has_the_columns_and_rows_of_the_json(api: Api, group: str) -> None:
    for run in ("r1", "r2", "r3"):
        await api.chat(run)
    whole = (await api.get(f"/api/usage?group_by={group}"))["rows"]
    assert len(whole) == (3 if group == "run" else 1)
    names = {name for row in whole for name in row} | ({"key_name"} if group == "key" else set())
    rows = await csv_rows(api, f"group_by={group}")
    assert set(rows[0]) == names
    for shown, row in zip(rows, whole, strict=True):
        assert all(shown[name] == "" for name in names - row.keys())
        assert {name: type(value)(shown[name]) for name, value in row.items()} == row
        assert not any("e" in shown[name].lower() for name in row if name.endswith("_usd")), "plain digits"


async def test_csv_is_complete_unless_a_limit_is_given(api: Api) -> None:
    runs = [f"r{number:03}" for number in range(101)]
    for run in runs:
        await api.chat(run)
    assert sorted(row["run"] for row in await csv_rows(api, "group_by=run")) == runs
    pages = [await csv_rows(api, f"group_by=run&limit=60&cursor={cursor}") for cursor in ("", "60")]
    assert [len(page) for page in pages] == [60, 41]
    assert sorted(row["run"] for page in pages for row in page) == runs


def test_holdout_comparison_counts_only_answered_calls() -> None:
    """A provider that fails for one side must not look like a saving. Shares come from exact sums."""
    treated = Sums(calls=15, errors=5, input_tokens=1_000, cost_nano_usd=1_004)
    holdout = Sums(calls=10, input_tokens=1_000, cost_nano_usd=2_008)
    comparison = comparison_of([ReportRow("compress+treated", treated), ReportRow("holdout", holdout)])
    assert comparison is not None
    assert (comparison.treated.input_tokens_per_call, comparison.holdout.input_tokens_per_call) == (100, 100)
    assert (comparison.input_tokens_saved_share, comparison.cost_saved_share) == (0, 0.5)
