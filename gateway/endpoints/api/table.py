"""Every route of the control API, in the order in which they are tried."""

from __future__ import annotations

from typing import Final

from gateway.endpoints.api import (
    agents,
    allocate,
    audit,
    budgets,
    classify,
    explain,
    keys,
    maintenance,
    runs,
    settings,
    suggestions,
    usage,
    workflows,
)
from gateway.endpoints.api.route import Route

ROUTES: Final[tuple[Route, ...]] = (
    *settings.ROUTES,
    *suggestions.ROUTES,
    *workflows.ROUTES,
    *runs.ROUTES,
    *budgets.ROUTES,
    *keys.ROUTES,
    *classify.ROUTES,
    *allocate.ROUTES,
    *explain.ROUTES,
    *usage.ROUTES,
    *agents.ROUTES,
    *audit.ROUTES,
    *maintenance.ROUTES,
)
