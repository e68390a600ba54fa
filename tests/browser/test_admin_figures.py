"""The figures on the admin pages equal those of the rows of `token_usage`."""

from __future__ import annotations

import html
import json
import re
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gateway.store.usage_report import GroupBy
from tests.browser.conftest import CONFIG, Client, make_traffic
from tests.browser.page_text import figure, section, table_rows, values
from tests.farebox_process import running_farebox

_CALLS = "status IN ('ok', 'error', 'cancelled', 'lost')"
PagesAndRows = tuple[dict[str, str], sqlite3.Connection]


@pytest.fixture(scope="module")
def pages_and_rows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PagesAndRows]:
    """Pages of a gateway that has ended since, and the rows it left."""
    folder = tmp_path_factory.mktemp("agreed")
    usage = [f"/admin/usage?group_by={group.value}" for group in GroupBy]
    with running_farebox(folder, CONFIG) as gateway:
        make_traffic(gateway)
        client = Client(gateway.url)
        shown = (
            "/admin",
            "/admin/runs",
            "/admin/runs/r-1",
            "/admin/agents",
            "/admin/workflows",
            "/admin/workflows/intake",
        )
        pages = {path: client.get(path).text for path in (*shown, *usage)}
    connection = sqlite3.connect(Path(folder) / ".farebox" / "store.db")
    connection.row_factory = sqlite3.Row
    yield pages, connection
    connection.close()


def sums(connection: sqlite3.Connection, where: str = "1", *parameters: Any) -> dict[str, float]:
    query = f"""SELECT sum({_CALLS}) calls, sum(status = 'refused') refused, sum(status IN ('error')) errors,
        sum(input_tokens) input_tokens, sum(output_tokens) output_tokens, sum(total_tokens) total_tokens,
        sum(cost_nano_usd) / 1e9 cost_usd, sum(saved_tokens) saved_tokens FROM token_usage WHERE {where}"""
    row = connection.execute(query, parameters).fetchone()
    return {name: float(row[name] or 0) for name in row.keys()}  # noqa: SIM118 - a row is no mapping


def test_overview_totals_equal_the_usage_rows(pages_and_rows: PagesAndRows) -> None:
    pages, connection = pages_and_rows
    page = pages["/admin"]
    match = re.search(r'data-today="([^"]+)" data-month="([^"]+)"', page)
    assert match
    for day, prefix in ((match[1], "today"), (match[2], "month")):
        from_ms = datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() * 1000
        stored = sums(connection, "at >= ?", from_ms)
        assert stored["total_tokens"] > 0
        assert figure(page, f"{prefix}-tokens") == stored["total_tokens"]
        assert figure(page, f"{prefix}-cost") == pytest.approx(stored["cost_usd"], abs=1e-9)
        assert figure(page, f"{prefix}-refused") == stored["refused"]
    assert figure(page, "month-saved") == sums(connection)["saved_tokens"]


def test_other_overview_figures_equal_the_usage_rows(pages_and_rows: PagesAndRows) -> None:
    pages, connection = pages_and_rows
    page, everything = pages["/admin"], sums(connection)
    refused, this_month, failed = values(section(page, "Refused today"))[1:]
    assert (refused, this_month, failed) == (
        everything["calls"] + everything["refused"],
        everything["refused"],
        everything["errors"],
    )
    bars = re.findall(r'class="label">([^<]+)</span>.*?class="value">(.*?)</span>', section(page, "Intents"), re.DOTALL)
    assert bars
    for intent, value in bars:
        name = "" if intent == "not classified" else intent
        assert values(value) == [sums(connection, "intent = ?", name)["calls"]]
    codes = re.findall(
        r'class="label">([^<]+)</span>.*?class="value">(.*?)</span>', section(page, "Why calls were refused"), re.DOTALL
    )
    assert [code for code, _ in codes] == ["request exceeds budget"]
    assert values(codes[0][1]) == [everything["refused"]]
    largest = table_rows(section(page, "Largest workflows").replace("<table>", '<table class="w">'), "w")
    assert largest
    for name, shown in largest:
        stored = sums(connection, "workflow = ?", "" if name == "untagged" else name)
        expected = [stored[name_of_sum] for name_of_sum in ("calls", "refused", "total_tokens", "cost_usd")]
        assert shown == pytest.approx(expected, abs=1e-9), name
    used = sums(connection, "at >= (SELECT max(at) FROM token_usage) - 3600000")
    cost, tokens = values(section(page, "Burn rate"))[:2]
    assert tokens == used["total_tokens"]
    assert cost == pytest.approx(used["cost_usd"], abs=1e-9)
    saved = values(section(page, "Saved this month"))
    assert saved[0] == everything["saved_tokens"]


def test_chart_parts_equal_the_usage_rows(pages_and_rows: PagesAndRows) -> None:
    pages, connection = pages_and_rows
    for path, metric in (("/admin", "cost_usd"), ("/admin/usage?group_by=workflow", "total_tokens")):
        match = re.search(r"data-chart='([^']+)'", pages[path])
        assert match
        chart = json.loads(html.unescape(match[1]))
        assert len(chart["days"]) == 30
        parts = {part["name"]: sum(part["values"]) for part in chart["parts"]}
        everything = sums(connection)[metric]
        assert sum(parts.values()) == pytest.approx(everything, abs=1e-9)
        for name in ("intake", "triage"):
            assert parts[name] == pytest.approx(sums(connection, "workflow = ?", name)[metric], abs=1e-9)
    by_run = re.search(r"data-chart='([^']+)'", pages["/admin/usage?group_by=run"])
    assert by_run
    assert [part["name"] for part in json.loads(html.unescape(by_run[1]))["parts"]] == [""]


def test_agents_and_workflows_pages_equal_the_usage_rows(
    pages_and_rows: PagesAndRows,
) -> None:
    pages, connection = pages_and_rows
    for path, column, names in (
        ("/admin/agents", "agent", ("calls", "total_tokens", "cost_usd")),
        ("/admin/workflows", "workflow", ("calls", "refused", "total_tokens", "cost_usd")),
    ):
        rows = table_rows(re.sub("<table[^>]*>", '<table class="all">', pages[path]), "all")
        assert len(rows) == 2
        for name, shown in rows:
            stored = sums(connection, f"{column} = ?", name)
            assert shown[-len(names) :] == pytest.approx([stored[column] for column in names], abs=1e-9), name
    stored = sums(connection, "workflow = 'intake'")
    calls, refused, tokens, saved, cost = values(section(pages["/admin/workflows/intake"], "Used in 30 days"))
    assert (calls, refused, tokens, saved) == tuple(
        stored[column] for column in ("calls", "refused", "total_tokens", "saved_tokens")
    )
    assert cost == pytest.approx(stored["cost_usd"], abs=1e-9)


def test_timeline_has_a_bar_for_every_call(pages_and_rows: PagesAndRows) -> None:
    pages, connection = pages_and_rows
    page = pages["/admin/runs/r-1"]
    bars = re.findall(r'<a href="#call-([^"]+)"><rect class="([a-z]+)" x="([^"]+)" y="\d+" width="([^"]+)"', page)
    stored = dict(connection.execute("SELECT id, status FROM token_usage WHERE run = 'r-1'").fetchall())
    assert {call: status for call, status, _, _ in bars} == stored
    for _, _, at, width in bars:
        assert 0 <= float(at) <= float(at) + float(width) <= 100.01


def test_runs_page_equals_the_usage_rows(pages_and_rows: PagesAndRows) -> None:
    pages, connection = pages_and_rows
    rows = re.findall(r'<tr id="run-([^"]+)">(.*?)</tr>', pages["/admin/runs"], re.DOTALL)
    assert {run for run, _ in rows} == {"r-1", "r-2", "r-3"}
    for run, row in rows:
        stored = sums(connection, "run = ?", run)
        tokens, limit, cost, cost_limit, calls, refused = values(row)
        assert (tokens, calls, refused) == (stored["total_tokens"], stored["calls"], stored["refused"])
        assert cost == pytest.approx(stored["cost_usd"], abs=1e-9)
        assert (limit, cost_limit) == (4000, 0.05)


def test_run_page_equals_the_usage_rows(pages_and_rows: PagesAndRows) -> None:
    pages, connection = pages_and_rows
    page, stored = pages["/admin/runs/r-1"], sums(connection, "run = 'r-1'")
    assert figure(page, "tokens") == stored["total_tokens"]
    assert figure(page, "cost") == pytest.approx(stored["cost_usd"], abs=1e-9)
    assert figure(page, "calls") == stored["calls"] == 3
    assert figure(page, "refused") == stored["refused"] == 1
    summaries = re.findall(r"<summary>(.*?)</summary>", page, re.DOTALL)
    assert len(summaries) == stored["calls"] + stored["refused"]
    settled = [values(summary)[1] for summary in summaries if "→" in summary and "<b>" in summary]
    assert sum(settled) == stored["total_tokens"]
    assert sum("request_exceeds_budget" in summary or "budget_exceeded" in summary for summary in summaries) == 1


@pytest.mark.parametrize("group", [group.value for group in GroupBy])
def test_usage_page_equals_the_usage_rows(pages_and_rows: PagesAndRows, group: str) -> None:
    pages, connection = pages_and_rows
    names = ("calls", "refused", "errors", "input_tokens", "output_tokens", "total_tokens", "cost_usd", "saved_tokens")
    column = {"key": "key_id", "day": "strftime('%Y-%m-%d', at / 1000, 'unixepoch')"}.get(group, group)
    *rows, total = table_rows(pages[f"/admin/usage?group_by={group}"], "usage")
    assert rows
    for label, shown in rows:
        stored = sums(connection, f"{column} = ?", "" if label == "none" else label)
        assert shown == pytest.approx([stored[name] for name in names], abs=1e-9), label
    everything = sums(connection, "1")
    assert total[1] == pytest.approx([everything[name] for name in names], abs=1e-9)
