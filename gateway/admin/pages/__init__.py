"""One module per page; `PAGES` is every route of all of them, in the order in which they are tried."""

from __future__ import annotations

from typing import Final

from gateway.admin.pages import (
    agents,
    audit,
    budgets,
    health,
    keys,
    nowhere,
    overview,
    people,
    runs,
    settings,
    usage,
    workflows,
)
from gateway.admin.visit import Page

PAGES: Final[tuple[Page, ...]] = (
    *overview.PAGES,
    *runs.PAGES,
    *workflows.PAGES,
    *budgets.PAGES,
    *agents.PAGES,
    *settings.PAGES,
    *keys.PAGES,
    *usage.PAGES,
    *audit.PAGES,
    *health.PAGES,
    *people.PAGES,
    *nowhere.PAGES,
)
