"""What a batch of usage rows adds to the sums by hour, by run and by step. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from gateway.store.tables import SUMS

Row = Mapping[str, Any]

HOUR_MS: Final = 3_600_000
# Refused calls are counted apart, and a late settlement or a repair corrects a call that was counted before.
CALL_STATUSES: Final = ("ok", "error", "cancelled", "lost")
ERROR_STATUSES: Final = ("error", "lost")

HOURLY_KEY: Final = ("hour_at", "project", "workflow", "step", "agent", "key_id", "intent", "model", "savings")
# Columns of `token_usage` that are summed as they are; calls, refused and errors are counted from the status.
SUMMED: Final = SUMS[3:]


def hourly(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """One row for each hour and combination of names, in the order of their keys, so that every writer locks alike."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        key = (row["at"] - row["at"] % HOUR_MS, *(row[name] for name in HOURLY_KEY[1:]))
        sums = found.get(key)
        if sums is None:
            sums = found[key] = dict(zip(HOURLY_KEY, key, strict=True)) | dict.fromkeys(SUMS, 0)
        _add(sums, row)
    return [found[key] for key in sorted(found)]


def by_run(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """One row for each run that was tagged. Its state is what its latest event says: exhausted, or active."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        if not row["run"]:
            continue
        key = (row["project"], row["run"])
        run = found.get(key)
        if run is None:
            run = found[key] = {"project": key[0], "run": key[1]} | _first_seen(
                row, ("workflow", "agent", "user", "parent_run")
            )
        _add(run, row)
        _see(run, row)
        for name in ("agent", "user", "parent_run"):
            run[name] = run[name] or row[name]
    for run in found.values():
        run["plan"] = run["metrics"] = ""
    return [found[key] for key in sorted(found)]


def by_step(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """One row for each step of a run."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in rows:
        if not row["run"] or not row["step"]:
            continue
        key = (row["project"], row["run"], row["step"])
        step = found.get(key)
        if step is None:
            step = found[key] = dict(zip(("project", "run", "step"), key, strict=True)) | _first_seen(row, ())
            step |= {"intent": "", "confidence": None, "intent_source": "", "model": ""}
            del step["state"]
        _add(step, row)
        _see(step, row)
        if row["intent"]:
            step |= {
                "intent": row["intent"],
                "confidence": row["intent_confidence"],
                "intent_source": row["intent_source"],
            }
        step["model"] = row["model"] or step["model"]
    return [found[key] for key in sorted(found)]


def _first_seen(row: Row, names: Sequence[str]) -> dict[str, Any]:
    seen = {name: row[name] for name in names}
    return seen | {"first_at": row["at"], "last_at": row["at"], "state": ""} | dict.fromkeys(SUMS, 0)


def _see(into: dict[str, Any], row: Row) -> None:
    into["first_at"] = min(into["first_at"], row["at"])
    if row["at"] >= into["last_at"]:
        into["last_at"] = row["at"]
        if "state" in into:
            into["state"] = "exhausted" if row["code"] == "run_budget_exceeded" else "active"


def _add(sums: dict[str, Any], row: Row) -> None:
    status = row["status"]
    if status in CALL_STATUSES:
        sums["calls"] += 1
        if status in ERROR_STATUSES:
            sums["errors"] += 1
    elif status == "refused":
        sums["refused"] += 1
    for name in SUMMED:
        sums[name] += row[name]
