"""The 40 settings, seeded with the defaults of this revision, which the file beside this one freezes.

`updated_by` stays empty until someone changes a setting: as long as it is, the first values of the configuration file count.
"""

from __future__ import annotations

import json
from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_JSON_COLUMNS = ("value", "choices")


def upgrade() -> None:
    rows = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    table = sa.table("system_settings_config", *(sa.column(name) for name in rows[0]), sa.column("updated_at"))
    op.bulk_insert(table, [_row(setting) for setting in rows])


def downgrade() -> None:
    op.execute("DELETE FROM system_settings_config")


def _row(setting: dict[str, object]) -> dict[str, object]:
    encoded = {name: json.dumps(setting[name]) for name in _JSON_COLUMNS}
    return {**setting, **encoded, "updated_at": 0}
