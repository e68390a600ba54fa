"""All tables of the store, for SQLite and Postgres alike. `migrations/` has their history; a test compares both.

Times are integers of ms since the epoch, money is in nano-USD. Missing texts are the empty string, so that rows group and sum
in the same way on every engine; missing measurements are NULL.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Float,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    literal_column,
)

# The newest revision in `migrations/versions`. Repeated here so that a start need not load Alembic to check it.
SCHEMA_REVISION: Final = "0005"

METADATA: Final = MetaData()

# SQLite only numbers rows automatically in a column declared INTEGER.
_SERIAL: Final = BigInteger().with_variant(Integer, "sqlite")


def _text(name: str, **options: Any) -> Column[Any]:
    return Column(name, Text, nullable=False, server_default="", **options)


def _count(name: str) -> Column[Any]:
    return Column(name, BigInteger, nullable=False, server_default="0")


def _time(name: str, **options: Any) -> Column[Any]:
    return Column(name, BigInteger, **options)


def _flag(name: str) -> Column[Any]:
    return Column(name, Boolean, nullable=False)


def is_given(name: Column[Any]) -> ColumnElement[bool]:
    """That a name is not empty, in the words of the partial indexes on it: they are only used by queries that state it."""
    return name != literal_column("''")


# What is summed wherever calls are summed. `calls` counts admitted ones; refused ones are counted separately.
SUMS: Final = (
    "calls",
    "refused",
    "errors",
    "input_tokens",
    "output_tokens",
    "total_tokens",
    "cost_nano_usd",
    "requests",
    "saved_tokens",
    "saved_nano_usd",
    "overrun_tokens",
    "overrun_nano_usd",
)

# One row per usage event. On Postgres the table is partitioned by month of `at`; `at` is therefore part of the key, and
# `usage.insert_entries` ensures that an id is stored only once, whatever its `at`.
token_usage: Final = Table(
    "token_usage",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("at", BigInteger, primary_key=True, autoincrement=False),
    _text("project"),
    _text("key_id"),
    _text("workflow"),
    _text("run"),
    _text("step"),
    _text("agent"),
    _text("user"),
    _text("parent_run"),
    _text("intent"),
    Column("intent_confidence", Float),
    _text("intent_source"),
    _text("model_requested"),
    _text("model"),
    _text("provider"),
    _text("protocol"),
    _flag("stream"),
    _text("status"),  # ok, refused, error, cancelled, lost, late, repair
    _text("code"),  # of the refusal or error
    _count("input_tokens"),
    _count("output_tokens"),
    _count("cache_read_tokens"),
    _count("cache_write_tokens"),
    _count("reasoning_tokens"),
    _count("total_tokens"),
    _count("cost_nano_usd"),
    _count("requests"),
    _count("reserved_tokens"),
    _count("reserved_nano_usd"),
    _count("overrun_tokens"),
    _count("overrun_nano_usd"),
    _count("saved_tokens"),
    _count("saved_nano_usd"),
    _text("usage_source"),  # provider, estimated, none
    _text("actions"),  # as in x-budget-actions: clamp, compress=1240, route=small
    _text("savings"),  # the kinds of those actions, sorted and joined by +: clamp+compress+route
    _text("detail"),  # JSON: the ladder, attempts, what else explains the call
    Column("prompt_tokens_counted", BigInteger),
    Column("duration_ms", BigInteger),
    Column("first_byte_ms", BigInteger),
    Column("overhead_us", BigInteger),
    _text("request_id"),
    Index("ix_token_usage_run", "project", "run", "at"),
    # Rows arrive in the order of time, so this index only grows at its end, which is cheap.
    Index("ix_token_usage_at", "at"),
)


def _sums_of(name: str, time_column: str) -> Table:
    keys = (Column(key, Text, primary_key=True) for key in GROUPED)
    start = Column(time_column, BigInteger, primary_key=True, autoincrement=False)
    return Table(name, METADATA, start, *keys, *(_count(sums) for sums in SUMS))


# Sums by hour and by day for everything that usage is grouped by except the run: reports read these instead of a million rows.
GROUPED: Final = ("project", "workflow", "step", "agent", "key_id", "intent", "model", "savings")
usage_hourly: Final = _sums_of("usage_hourly", "hour_at")
usage_daily: Final = _sums_of("usage_daily", "day_at")

# Events that could not be stored, complete and with the reason: nothing that was settled is thrown away.
usage_dead_letter: Final = Table(
    "usage_dead_letter",
    METADATA,
    Column("id", Text, primary_key=True),
    _text("project"),
    _time("at", nullable=False),
    _text("kind"),
    _count("total_tokens"),
    _count("cost_nano_usd"),
    _count("requests"),
    _text("draft"),
    _text("detail"),
    _text("reason"),
    _time("parked_at", nullable=False),
)

runs: Final = Table(
    "runs",
    METADATA,
    Column("project", Text, primary_key=True),
    Column("run", Text, primary_key=True),
    _text("workflow"),
    _text("agent"),
    _text("user"),
    _text("parent_run"),
    _text("state"),  # active, paused, exhausted, completed, cancelled
    _time("first_at", nullable=False),
    _time("last_at", nullable=False),
    _time("completed_at"),
    _text("plan"),  # JSON: what POST /api/runs declared, and its limits
    _text("metrics"),  # JSON: written when the run completes
    *(_count(name) for name in SUMS),
    Index("ix_runs_last_at", "project", "last_at"),
    Index("ix_runs_workflow", "project", "workflow", "last_at"),
    # Partial where parent_run <> '' and agent <> '': runs without one need not be in the index.
    Index("ix_runs_parent", "project", "parent_run"),
    Index("ix_runs_agent", "project", "agent", "last_at"),
)

run_steps: Final = Table(
    "run_steps",
    METADATA,
    Column("project", Text, primary_key=True),
    Column("run", Text, primary_key=True),
    Column("step", Text, primary_key=True),
    Column("position", Integer, nullable=False, server_default="0"),
    _text("intent"),
    Column("confidence", Float),
    _text("intent_source"),
    _text("tier"),
    _text("model"),
    Column("allocation_tokens", BigInteger),
    Column("hard_limit_tokens", BigInteger),
    _text("plan"),  # JSON: compression policy and what else was decided for the step
    _time("first_at"),
    _time("last_at"),
    *(_count(name) for name in SUMS),
)

workflows: Final = Table(
    "workflows",
    METADATA,
    Column("project", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    _text("mode"),  # observe, enforce
    _text("declaration"),  # JSON
    _time("updated_at", nullable=False),
    _text("updated_by"),
)

budgets: Final = Table(
    "budgets",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("project", Text),  # NULL: all projects
    _text("scope"),
    _text("match"),
    Column("tokens", BigInteger),
    Column("nano_usd", BigInteger),
    Column("requests", BigInteger),
    _text("window"),
    _text("on_pressure"),  # JSON list
    _text("hold"),
    _text("on_outage"),
    _text("mode"),
    _text("timezone"),
    _count("wait_ms"),
    _time("updated_at", nullable=False),
    _text("updated_by"),
)

api_keys: Final = Table(
    "api_keys",
    METADATA,
    Column("id", Text, primary_key=True),
    _text("name"),
    _text("project"),
    Column("digest", Text, nullable=False, unique=True),  # SHA-256 of the key, hex; the key itself is never stored
    Column("old_digest", Text, unique=True),  # after a rotation with a grace period
    _time("old_until"),
    _text("prefix"),  # for people to recognise it
    _flag("admin"),
    _text("role"),  # admin, viewer; empty for a key that only calls models
    _text("workflow"),
    _text("agent"),
    _text("tags"),  # JSON object: step, user, priority of calls that name none
    _text("allowed_models"),  # JSON list of globs; empty list: all
    _text("limits"),  # JSON object
    _time("created_at", nullable=False),
    _text("created_by"),
    _time("expires_at"),
    _time("revoked_at"),
)

system_settings_config: Final = Table(
    "system_settings_config",
    METADATA,
    Column("key", Text, primary_key=True),
    _text("value"),  # JSON
    _text("type"),
    Column("minimum", Float),
    Column("maximum", Float),
    _text("choices"),  # JSON list
    _text("category"),
    _text("description"),
    _time("updated_at", nullable=False),
    _text("updated_by"),  # empty until someone changes it
)

settings_history: Final = Table(
    "settings_history",
    METADATA,
    Column("id", _SERIAL, primary_key=True),
    _text("key"),
    _text("old_value"),
    _text("new_value"),
    _time("changed_at", nullable=False),
    _text("changed_by"),
    Index("ix_settings_history_key", "key", "id"),
)

agent_intensity_metrics: Final = Table(
    "agent_intensity_metrics",
    METADATA,
    Column("id", _SERIAL, primary_key=True),
    _text("project"),
    _text("agent"),
    Column("creation", Float, nullable=False),
    Column("execution", Float, nullable=False),
    Column("combined", Float, nullable=False),
    Column("runs", BigInteger, nullable=False, server_default="0"),  # the number of runs behind the execution score
    _text("source"),  # computed, set
    _text("metrics"),  # JSON: the figures behind the scores
    _flag("current"),
    _time("measured_at", nullable=False),
    _text("measured_by"),
    Index("ix_agent_intensity_agent", "project", "agent", "id"),
    Index("ix_agent_intensity_current", "current", "project", "agent"),
)

intent_cache: Final = Table(
    "intent_cache",
    METADATA,
    Column("key", Text, primary_key=True),
    _text("intent"),
    Column("confidence", Float, nullable=False),
    _text("source"),
    _text("reasoning"),
    _time("created_at", nullable=False),
    _time("expires_at", nullable=False),
    Index("ix_intent_cache_expires_at", "expires_at"),
)

audit_events: Final = Table(
    "audit_events",
    METADATA,
    Column("id", _SERIAL, primary_key=True),
    _time("at", nullable=False),
    _text("project"),
    _text("actor"),
    _text("action"),
    _text("target"),
    _text("run"),
    _text("request_id"),
    _text("detail"),  # JSON
    Index("ix_audit_events_at", "at"),
)

admin_users: Final = Table(
    "admin_users",
    METADATA,
    Column("name", Text, primary_key=True),
    _text("role"),
    _text("password_hash"),  # argon2id
    _time("created_at", nullable=False),
    _time("disabled_at"),
)

admin_sessions: Final = Table(
    "admin_sessions",
    METADATA,
    Column("digest", Text, primary_key=True),  # SHA-256 of the cookie's value
    _text("user"),
    _time("created_at", nullable=False),
    _time("seen_at", nullable=False),
    _time("expires_at", nullable=False),
    Index("ix_admin_sessions_user", "user"),
)

# A number per subject that every writer raises in its transaction, so that one small read tells whether to reload.
control_versions: Final = Table(
    "control_versions",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("version", BigInteger, nullable=False, server_default="0"),
    _text("value"),
)
