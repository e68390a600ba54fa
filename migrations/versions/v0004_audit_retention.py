"""Old events may leave the audit; those of the last 90 days stay, whatever the configuration says and whoever asks."""

from __future__ import annotations

from typing import Final

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_KEPT_S: Final = 90 * 86_400
_REFUSED: Final = "audit_events is append-only"


def upgrade() -> None:
    """By the database's own clock: one that a gateway could set would keep nothing."""
    if op.get_bind().dialect.name == "postgresql":
        _postgres("UPDATE OR TRUNCATE")
        op.execute(
            "CREATE TRIGGER audit_events_keep_young BEFORE DELETE ON audit_events FOR EACH ROW "
            f"WHEN (OLD.at > (extract(epoch FROM clock_timestamp()) - {_KEPT_S}) * 1000) "
            "EXECUTE FUNCTION audit_events_keep()"
        )
    else:
        _sqlite(f"WHEN OLD.at > (strftime('%s', 'now') - {_KEPT_S}) * 1000")


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP TRIGGER audit_events_keep_young ON audit_events")
        _postgres("UPDATE OR DELETE OR TRUNCATE")
    else:
        _sqlite("")


def _postgres(events: str) -> None:
    op.execute("DROP TRIGGER audit_events_keep ON audit_events")
    op.execute(
        f"CREATE TRIGGER audit_events_keep BEFORE {events} ON audit_events "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_events_keep()"
    )


def _sqlite(condition: str) -> None:
    op.execute("DROP TRIGGER audit_events_keep_delete")
    op.execute(
        f"CREATE TRIGGER audit_events_keep_delete BEFORE DELETE ON audit_events {condition} "
        f"BEGIN SELECT RAISE(ABORT, '{_REFUSED}'); END"
    )
