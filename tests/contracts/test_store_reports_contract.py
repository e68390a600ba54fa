"""Reports, calls and learned samples on SQLite and on Postgres, compared with sums over the same events."""

from __future__ import annotations

import csv
import io
import random
from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from gateway.ledger.port import EntryKind, OutboxEntry
from gateway.store import recent_calls, runs, step_history, usage, usage_csv, usage_report
from gateway.store.database import Database
from gateway.store.runs import Sums
from gateway.store.usage_report import GroupBy, UsageFilter
from tests.store_events import DAY_MS, NOW_MS, entry

pytest_plugins = ("tests.store_fixtures",)

HOUR_MS = 3_600_000
START_MS = (NOW_MS - 4 * DAY_MS) // DAY_MS * DAY_MS


def some_events(count: int = 300, seed: int = 7) -> list[OutboxEntry]:
    """Calls of forty runs over three days; a run keeps its workflow."""
    chance = random.Random(seed)
    events = []
    for number in range(count):
        run = chance.randrange(40)
        status = chance.choice(["ok", "ok", "ok", "error", "refused", "cancelled"])
        kind = chance.choice([EntryKind.SETTLED] * 8 + [EntryKind.EXPIRED, EntryKind.LATE, EntryKind.REPAIR])
        tokens = 0 if status == "refused" else chance.randrange(1, 5000)
        events.append(
            entry(
                f"e{number}",
                tokens,
                tokens * 7,
                kind=kind,
                at_ms=START_MS + run * HOUR_MS + chance.randrange(5 * HOUR_MS),
                project=chance.choice(["default", "other"]),
                run=f"r{run}",
                workflow=f"w{run % 3}",
                step=chance.choice(["plan", "draft", ""]),
                agent=chance.choice(["ada", "bob"]),
                key_id=chance.choice(["k1", "k2"]),
                intent=chance.choice(["extract", "generate"]),
                model=chance.choice(["small", "large"]),
                actions=chance.choice(["", "clamp", "compress=10, clamp"]),
                detail={"status": status, "saved_tokens": chance.randrange(3)},
            )
        )
    return events


COLUMNS = {"key": "key_id"}


def expected_report(events: list[OutboxEntry], group_by: GroupBy, usage_filter: UsageFilter) -> dict[str, Sums]:
    """The report computed as documented, one event at a time."""
    sums: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for event in events:
        fields: dict[str, Any] = orjson.loads(event.draft) | orjson.loads(event.detail) | {"project": event.project}
        names = ("project", "workflow", "run", "step", "agent", "key", "intent", "model")
        conditions = ((COLUMNS.get(name, name), getattr(usage_filter, name)) for name in names)
        if any(value is not None and fields[column] != value for column, value in conditions):
            continue
        if usage_filter.from_ms is not None and event.at_ms < usage_filter.from_ms:
            continue
        if usage_filter.to_ms is not None and event.at_ms >= usage_filter.to_ms:
            continue
        if group_by is GroupBy.DAY:
            group = datetime.fromtimestamp(event.at_ms / 1000, UTC).date().isoformat()
        elif group_by is GroupBy.SAVINGS:
            group = {"": "", "clamp": "clamp", "compress=10, clamp": "clamp+compress"}[fields["actions"]]
        else:
            group = fields[COLUMNS.get(group_by, group_by)]
        _add_event(sums[group], event, fields)
    return {group: Sums(**group_sums) for group, group_sums in sums.items()}


def _add_event(group_sums: dict[str, int], event: OutboxEntry, fields: dict[str, Any]) -> None:
    is_correction = event.kind in (EntryKind.LATE, EntryKind.REPAIR)
    lost = event.kind is EntryKind.EXPIRED
    refused = fields["status"] == "refused" and not is_correction and not lost
    group_sums["calls"] += not is_correction and not refused
    group_sums["refused"] += refused
    group_sums["errors"] += lost or (fields["status"] == "error" and not is_correction)
    group_sums["input_tokens"] += fields["input_tokens"]
    group_sums["output_tokens"] += fields["output_tokens"]
    group_sums["total_tokens"] += event.amount.tokens
    group_sums["cost_nano_usd"] += event.amount.nano_usd
    group_sums["requests"] += event.amount.requests
    group_sums["saved_tokens"] += fields["saved_tokens"]


RANGES: list[tuple[int | None, int | None]] = [
    (None, None),
    (START_MS + 7 * HOUR_MS + 1234, None),
    (None, START_MS + 30 * HOUR_MS + 99),
    (START_MS + HOUR_MS, START_MS + 20 * HOUR_MS),
    (START_MS + 10 * HOUR_MS + 5, START_MS + 10 * HOUR_MS + HOUR_MS // 2),
    (START_MS + 8 * HOUR_MS + 77, START_MS + 33 * HOUR_MS + 1),
]
FILTERS: list[dict[str, str]] = [
    {},
    {"project": "default"},
    {"project": "default", "workflow": "w1", "step": "draft"},
    {"run": "r4"},
    {"agent": "ada", "key": "k2"},
]


async def test_every_report_equals_the_sums_of_its_events(db: Database) -> None:
    events = some_events()
    for start in range(0, len(events), 70):
        await usage.insert_entries(db, events[start : start + 70], NOW_MS)
    for number, (from_ms, to_ms) in enumerate(RANGES):
        for names in FILTERS:
            usage_filter = UsageFilter(from_ms=from_ms, to_ms=to_ms, **names)
            # Every grouping with every filter, a third of them with each range.
            for group_by in list(GroupBy)[number % 3 :: 3]:
                expected = expected_report(events, group_by, usage_filter)
                report = await usage_report.report(db, group_by, usage_filter)
                assert {row.group: row.sums for row in report.rows} == expected, (group_by, usage_filter)
                assert report.groups == len(expected)
                assert report.total.total_tokens == sum(sums.total_tokens for sums in expected.values())


async def test_calls_without_a_run_are_a_group_of_the_run_report(db: Database) -> None:
    no_names: dict[str, Any] = {"run": "", "workflow": "", "step": "", "intent": "", "actions": ""}
    answered = {"status": "ok", "saved_tokens": 1}
    untagged = [
        entry(f"u{number}", number + 1, at_ms=START_MS + number * HOUR_MS // 3, detail=answered, **no_names)
        for number in range(90)
    ]
    events = [*some_events(100), *untagged]
    await usage.insert_entries(db, events, NOW_MS)
    filters: list[dict[str, str]] = [{}, {"project": "default"}, {"workflow": ""}, {"workflow": "w1"}, {"run": ""}]
    for from_ms, to_ms in RANGES:
        for names in filters:
            usage_filter = UsageFilter(from_ms=from_ms, to_ms=to_ms, **names)
            expected = expected_report(events, GroupBy.RUN, usage_filter)
            report = await usage_report.report(db, GroupBy.RUN, usage_filter)
            assert {row.group: row.sums for row in report.rows} == expected, usage_filter
            assert report.groups == len(expected)
            assert report.total == (await usage_report.report(db, GroupBy.DAY, usage_filter)).total
    (largest,) = (await usage_report.report(db, GroupBy.RUN, UsageFilter(project="default"), limit=1)).rows
    runs_alone = expected_report(events, GroupBy.RUN, UsageFilter(project="default"))
    assert largest.sums.total_tokens == max(sums.total_tokens for sums in runs_alone.values())


async def test_report_limit_shows_the_largest_groups_and_sums_all(db: Database) -> None:
    sizes = {"w1": 100, "w2": 300, "w3": 200}
    await usage.insert_entries(db, [entry(name, tokens, workflow=name) for name, tokens in sizes.items()], NOW_MS)
    report = await usage_report.report(db, GroupBy.WORKFLOW, UsageFilter(), limit=2)
    assert [row.group for row in report.rows] == ["w2", "w3"]
    assert (report.total.total_tokens, report.groups) == (600, 3)


async def test_report_of_an_empty_store_is_empty(db: Database) -> None:
    report = await usage_report.report(db, GroupBy.RUN, UsageFilter(from_ms=0, to_ms=NOW_MS))
    assert (report.rows, report.total, report.groups) == ((), Sums(), 0)
    assert (await usage_report.calls(db, UsageFilter())).calls == ()


async def test_calls_are_paged_without_gaps_or_repeats(db: Database) -> None:
    events = [entry(f"e{number:02}", at_ms=NOW_MS + number // 4) for number in range(30)]
    await usage.insert_entries(db, [*events, entry("x", run="r2")], NOW_MS)
    listed: list[str] = []
    cursor = None
    while True:
        page = await usage_report.calls(db, UsageFilter(run="r1"), 7, cursor)
        listed += [call["id"] for call in page.calls]
        cursor = page.next
        if cursor is None:
            break
    assert listed == [f"e{number:02}" for number in reversed(range(30))]
    assert (await usage_report.calls(db, UsageFilter(run="r2"))).calls[0]["model"] == "small"


@pytest.mark.parametrize("sorted_calls_max", [0, 1_000])
async def test_recent_calls_are_the_latest_of_the_project(
    db: Database, monkeypatch: pytest.MonkeyPatch, sorted_calls_max: int
) -> None:
    """By either of the two ways in which SQLite is made to find them."""
    monkeypatch.setattr(recent_calls, "_SORTED_CALLS_MAX", sorted_calls_max)
    monkeypatch.setattr(recent_calls, "CALLS_MAX", 3)
    events = [
        entry(f"e{number}", at_ms=NOW_MS + number, project="small" if number % 3 else "large", detail=detail)
        for number in range(12)
        for detail in ({"status": "refused", "code": f"code{number}"},)
    ]
    await usage.insert_entries(db, events, NOW_MS)
    found = await recent_calls.recent_calls(db, "small")
    assert (found.calls, {code for code, _ in found.refusals}) == (3, {"code8", "code10", "code11"})
    assert (await recent_calls.recent_calls(db, "none")).calls == 0


async def test_names_that_look_like_formulas_are_escaped_in_csv(db: Database) -> None:
    names = ["=cmd|' /C calc'!A0", "+1", "-1", "@x", "plain", 'qu"ote,comma']
    events = [entry(f"e{number}", 10 - number, workflow=name) for number, name in enumerate(names)]
    await usage.insert_entries(db, events, NOW_MS)
    report = await usage_report.report(db, GroupBy.WORKFLOW, UsageFilter())
    text = usage_csv.to_csv("workflow", report.rows)
    header, *rows = csv.reader(io.StringIO(text))
    assert header[:3] == ["workflow", "calls", "refused"]
    assert [row[0] for row in rows] == ["'=cmd|' /C calc'!A0", "'+1", "'-1", "'@x", "plain", 'qu"ote,comma']
    assert [int(row[header.index("total_tokens")]) for row in rows] == [10, 9, 8, 7, 6, 5]


async def test_samples_come_from_finished_runs_of_the_last_month(db: Database) -> None:
    old, week, fresh = NOW_MS - 31 * DAY_MS, NOW_MS - 7 * DAY_MS, NOW_MS - 60_000
    events = [
        entry("a", 100, run="forgotten", at_ms=old),
        entry("b", 200, run="week", at_ms=week, intent="extract"),
        entry("c", 50, run="week", at_ms=week, intent="extract"),
        entry("d", 300, run="done", at_ms=fresh, intent="extract"),
        entry("e", 400, run="going", at_ms=fresh),
        entry("f", 500, run="stopped", at_ms=fresh),
        entry("g", 600, run="silent", at_ms=NOW_MS - 3_600_000, step="send", intent="send"),
        entry("h", 700, run="done", at_ms=fresh, workflow="elsewhere", project="other"),
    ]
    await usage.insert_entries(db, events, NOW_MS)
    await runs.set_state(db, "default", "done", "completed", NOW_MS)
    await runs.set_state(db, "default", "stopped", "cancelled", NOW_MS)
    samples_by_step = await step_history.by_step(db, "default", "wf", NOW_MS)
    assert {step: [sample.tokens for sample in samples] for step, samples in samples_by_step.items()} == {
        "draft": [300, 250],
        "send": [600],
    }
    assert [sample.weight for sample in samples_by_step["draft"]] == [pytest.approx(1, abs=0.01), pytest.approx(0.5)]
    learned = await step_history.by_intent(db, "default", NOW_MS)
    assert {(key.intent, key.model): len(samples) for key, samples in learned.items()} == {
        ("extract", "small"): 2,
        ("send", "small"): 1,
    }
    assert await step_history.by_step(db, "default", "unknown", NOW_MS) == {}


async def test_sample_of_a_run_includes_its_child_runs(db: Database) -> None:
    events = [
        entry("a", 10, run="outer"),
        entry("b", 200, run="inner", parent_run="outer"),
        entry("c", 3_000, run="innermost", parent_run="inner", workflow="other"),
        entry("d", 40_000, run="alone"),
        entry("e", 1, run="silent", at_ms=NOW_MS - DAY_MS),
    ]
    await usage.insert_entries(db, events, NOW_MS)
    for run in ("outer", "inner", "alone"):
        await runs.set_state(db, "default", run, "completed", NOW_MS)
    samples = await step_history.by_run(db, "default", "wf", NOW_MS)
    assert sorted(sample.tokens for sample in samples) == [1, 3_200, 3_210, 40_000]
    assert await step_history.by_run(db, "default", "other", NOW_MS) == (), "the run has not finished"


async def test_active_and_cancelled_runs_do_not_count_towards_the_sample_limit(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_history, "SAMPLES_MAX", 2)
    names = ("oldest", "older", "old", "stopped", "going")
    events = [entry(name, at + 1, run=name, at_ms=NOW_MS - 9 + at) for at, name in enumerate(names)]
    await usage.insert_entries(db, events, NOW_MS)
    for name, state in zip(names, ("completed", "completed", "completed", "cancelled", "active"), strict=True):
        await runs.set_state(db, "default", name, state, NOW_MS)
    assert [sample.tokens for sample in await step_history.by_run(db, "default", "wf", NOW_MS)] == [3, 2]


@pytest.mark.parametrize("cut_ms", [0, 90_000])
async def test_days_of_groups_equal_the_daily_report_of_each_group(db: Database, cut_ms: int) -> None:
    """With `cut_ms` the range cuts a day and an hour, so that all three kinds of sums are read."""
    await usage.insert_entries(db, some_events(), NOW_MS)
    usage_filter = UsageFilter(project="default", from_ms=START_MS + cut_ms, to_ms=START_MS + 2 * DAY_MS + cut_ms)
    days = await usage_report.days_of_groups(db, GroupBy.STEP, ["plan", ""], usage_filter)
    assert {group for group, _ in days} == {"plan", ""}
    for group in ("plan", ""):
        alone = await usage_report.report(db, GroupBy.DAY, replace(usage_filter, step=group))
        assert {day: sums for (name, day), sums in days.items() if name == group} == {
            row.group: row.sums for row in alone.rows
        }
