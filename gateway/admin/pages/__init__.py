"""One module per page; `PAGES` is every route of all of them, in the order in which they are tried."""

from __future__ import annotations

from typing import Final

from gateway.admin.page_request import Page
from gateway.admin.pages import (
    agents,
    audit,
    budgets,
    health,
    keys,
    logins,
    not_found,
    overview,
    runs,
    settings,
    usage,
    workflows,
)

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
    *logins.PAGES,
    *not_found.PAGES,
)
