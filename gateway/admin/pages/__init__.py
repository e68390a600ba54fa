"""One module per page; `PAGES` is every route of all of them, in the order in which they are tried."""

from __future__ import annotations

from typing import Final

from gateway.admin.pages import overview, people, runs, settings
from gateway.admin.visit import Page

PAGES: Final[tuple[Page, ...]] = (
    *overview.PAGES,
    *runs.PAGES,
    *settings.PAGES,
    *people.PAGES,
)
