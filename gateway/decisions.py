"""The decisions about one call in its usage row: every rung of the ladder, routing and compression, each with its reason."""

from __future__ import annotations

from typing import Any

import orjson


def decisions_of(detail: str) -> tuple[dict[str, Any], ...]:
    """The decisions in order; empty for a call about which nothing had to be decided."""
    try:
        found = orjson.loads(detail or b"{}")
    except orjson.JSONDecodeError:
        return ()
    decisions = found.get("decisions") if isinstance(found, dict) else None
    return tuple(one for one in decisions if isinstance(one, dict)) if isinstance(decisions, list) else ()
