"""The tables of the store.

A migration is frozen: it says what was made then, and never imports what the tables are now.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_SUMS = (
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
_TABLES = (
    "admin_sessions",
    "admin_users",
    "audit_events",
    "intent_cache",
    "agent_intensity_metrics",
    "control_versions",
    "settings_history",
    "system_settings_config",
    "api_keys",
    "budgets",
    "workflows",
    "run_steps",
    "runs",
    "usage_dead_letter",
    "usage_daily",
    "usage_hourly",
    "token_usage",
)


def upgrade() -> None:
    _usage()
    _usage_sums()
    _runs()
    _run_steps()
    _declared()
    _keys()
    _settings()
    _agents()
    _admin()
    _keep_audit()
    _name_versions()


def downgrade() -> None:
    for table in _TABLES:
        op.drop_table(table)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION audit_events_keep()")


def _key(name: str, kind: Any = None) -> sa.Column[Any]:
    return sa.Column(name, kind or sa.Text(), primary_key=True, autoincrement=False)


def _serial() -> sa.Column[Any]:
    return sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True)


def _text(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.Text(), nullable=False, server_default="")


def _count(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.BigInteger(), nullable=False, server_default="0")


def _flag(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.Boolean(), nullable=False)


def _sums() -> tuple[sa.Column[Any], ...]:
    return tuple(_count(name) for name in _SUMS)


def _usage() -> None:
    op.create_table(
        "token_usage",
        _key("id"),
        _key("at", sa.BigInteger()),
        _text("project"),
        _text("key_id"),
        _text("workflow"),
        _text("run"),
        _text("step"),
        _text("agent"),
        _text("user"),
        _text("parent_run"),
        _text("intent"),
        sa.Column("intent_confidence", sa.Float()),
        _text("intent_source"),
        _text("model_requested"),
        _text("model"),
        _text("provider"),
        _text("protocol"),
        _flag("stream"),
        _text("status"),
        _text("code"),
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
        _text("usage_source"),
        _text("actions"),
        _text("savings"),
        _text("detail"),
        sa.Column("prompt_tokens_counted", sa.BigInteger()),
        sa.Column("duration_ms", sa.BigInteger()),
        sa.Column("first_byte_ms", sa.BigInteger()),
        sa.Column("overhead_us", sa.BigInteger()),
        _text("request_id"),
        postgresql_partition_by="RANGE (at)",
    )
    op.create_index("ix_token_usage_at", "token_usage", ["at"])
    op.create_index("ix_token_usage_run", "token_usage", ["project", "run", "at"])


def _usage_sums() -> None:
    for table, start in (("usage_hourly", "hour_at"), ("usage_daily", "day_at")):
        op.create_table(
            table,
            _key(start, sa.BigInteger()),
            _key("project"),
            _key("workflow"),
            _key("step"),
            _key("agent"),
            _key("key_id"),
            _key("intent"),
            _key("model"),
            _key("savings"),
            *_sums(),
        )
    op.create_table(
        "usage_dead_letter",
        _key("id"),
        _text("project"),
        sa.Column("at", sa.BigInteger(), nullable=False),
        _text("kind"),
        _count("total_tokens"),
        _count("cost_nano_usd"),
        _count("requests"),
        _text("draft"),
        _text("detail"),
        _text("reason"),
        sa.Column("parked_at", sa.BigInteger(), nullable=False),
    )


def _runs() -> None:
    op.create_table(
        "runs",
        _key("project"),
        _key("run"),
        _text("workflow"),
        _text("agent"),
        _text("user"),
        _text("parent_run"),
        _text("state"),
        sa.Column("first_at", sa.BigInteger(), nullable=False),
        sa.Column("last_at", sa.BigInteger(), nullable=False),
        sa.Column("completed_at", sa.BigInteger()),
        _text("plan"),
        _text("metrics"),
        *_sums(),
    )
    op.create_index("ix_runs_last_at", "runs", ["project", "last_at"])
    has_parent = sa.text("parent_run <> ''")
    op.create_index(
        "ix_runs_parent", "runs", ["project", "parent_run"], postgresql_where=has_parent, sqlite_where=has_parent
    )
    op.create_index("ix_runs_workflow", "runs", ["project", "workflow", "last_at"])


def _run_steps() -> None:
    op.create_table(
        "run_steps",
        _key("project"),
        _key("run"),
        _key("step"),
        sa.Column("position", sa.Integer(), nullable=False, server_default="0"),
        _text("intent"),
        sa.Column("confidence", sa.Float()),
        _text("intent_source"),
        _text("tier"),
        _text("model"),
        sa.Column("allocation_tokens", sa.BigInteger()),
        sa.Column("hard_limit_tokens", sa.BigInteger()),
        _text("plan"),
        sa.Column("first_at", sa.BigInteger()),
        sa.Column("last_at", sa.BigInteger()),
        *_sums(),
    )


def _declared() -> None:
    op.create_table(
        "workflows",
        _key("project"),
        _key("name"),
        _text("mode"),
        _text("declaration"),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        _text("updated_by"),
    )
    op.create_table(
        "budgets",
        _key("id"),
        sa.Column("project", sa.Text()),
        _text("scope"),
        _text("match"),
        sa.Column("tokens", sa.BigInteger()),
        sa.Column("nano_usd", sa.BigInteger()),
        sa.Column("requests", sa.BigInteger()),
        _text("window"),
        _text("on_pressure"),
        _text("hold"),
        _text("on_outage"),
        _text("mode"),
        _text("timezone"),
        _count("wait_ms"),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        _text("updated_by"),
    )


def _keys() -> None:
    op.create_table(
        "api_keys",
        _key("id"),
        _text("name"),
        _text("project"),
        sa.Column("digest", sa.Text(), unique=True, nullable=False),
        sa.Column("old_digest", sa.Text(), unique=True),
        sa.Column("old_until", sa.BigInteger()),
        _text("prefix"),
        _flag("admin"),
        _text("role"),
        _text("workflow"),
        _text("agent"),
        _text("allowed_models"),
        _text("limits"),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        _text("created_by"),
        sa.Column("expires_at", sa.BigInteger()),
        sa.Column("revoked_at", sa.BigInteger()),
    )


def _settings() -> None:
    op.create_table(
        "system_settings_config",
        _key("key"),
        _text("value"),
        _text("type"),
        sa.Column("minimum", sa.Float()),
        sa.Column("maximum", sa.Float()),
        _text("choices"),
        _text("category"),
        _text("description"),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        _text("updated_by"),
    )
    op.create_table(
        "settings_history",
        _serial(),
        _text("key"),
        _text("old_value"),
        _text("new_value"),
        sa.Column("changed_at", sa.BigInteger(), nullable=False),
        _text("changed_by"),
    )
    op.create_index("ix_settings_history_key", "settings_history", ["key", "id"])
    op.create_table(
        "control_versions",
        _key("name"),
        _count("version"),
        _text("value"),
    )


def _agents() -> None:
    op.create_table(
        "agent_intensity_metrics",
        _serial(),
        _text("project"),
        _text("agent"),
        sa.Column("creation", sa.Float(), nullable=False),
        sa.Column("execution", sa.Float(), nullable=False),
        sa.Column("combined", sa.Float(), nullable=False),
        _count("runs"),
        _text("source"),
        _text("metrics"),
        _flag("current"),
        sa.Column("measured_at", sa.BigInteger(), nullable=False),
        _text("measured_by"),
    )
    op.create_index("ix_agent_intensity_agent", "agent_intensity_metrics", ["project", "agent", "id"])
    op.create_index("ix_agent_intensity_current", "agent_intensity_metrics", ["current", "project", "agent"])
    op.create_table(
        "intent_cache",
        _key("key"),
        _text("intent"),
        sa.Column("confidence", sa.Float(), nullable=False),
        _text("source"),
        _text("reasoning"),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
    )
    op.create_index("ix_intent_cache_expires_at", "intent_cache", ["expires_at"])


def _admin() -> None:
    op.create_table(
        "audit_events",
        _serial(),
        sa.Column("at", sa.BigInteger(), nullable=False),
        _text("project"),
        _text("actor"),
        _text("action"),
        _text("target"),
        _text("run"),
        _text("request_id"),
        _text("detail"),
    )
    op.create_index("ix_audit_events_at", "audit_events", ["at"])
    op.create_table(
        "admin_users",
        _key("name"),
        _text("role"),
        _text("password_hash"),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("disabled_at", sa.BigInteger()),
    )
    op.create_table(
        "admin_sessions",
        _key("digest"),
        _text("user"),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("seen_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
    )
    op.create_index("ix_admin_sessions_user", "admin_sessions", ["user"])


def _keep_audit() -> None:
    """The audit is append-only, for whoever holds the gateway's own credentials too."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION audit_events_keep() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'audit_events is append-only'; END $$"
        )
        op.execute(
            "CREATE TRIGGER audit_events_keep BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_events "
            "FOR EACH STATEMENT EXECUTE FUNCTION audit_events_keep()"
        )
        return
    for event in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER audit_events_keep_{event.lower()} BEFORE {event} ON audit_events "
            "BEGIN SELECT RAISE(ABORT, 'audit_events is append-only'); END"
        )


def _name_versions() -> None:
    versions = sa.table("control_versions", sa.column("name"), sa.column("version"))
    subjects = ("settings", "keys", "workflows", "budgets", "agents")
    op.bulk_insert(versions, [{"name": subject, "version": 1} for subject in subjects])
