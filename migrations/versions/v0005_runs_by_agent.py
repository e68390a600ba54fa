"""The runs of an agent by time: scoring an agent that runs seldom read all runs of its project.

Most gateways' runs have no agent, and each flush writes the index for the runs in it, so that those without one are left out.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    has_agent = sa.text("agent <> ''")
    op.create_index(
        "ix_runs_agent", "runs", ["project", "agent", "last_at"], postgresql_where=has_agent, sqlite_where=has_agent
    )


def downgrade() -> None:
    op.drop_index("ix_runs_agent", "runs")
