"""What was decided about one call, as its usage row keeps it: every rung of the ladder, routing and compression, each with why."""

from __future__ import annotations

from typing import Any

import orjson


def decisions_of(detail: str) -> tuple[dict[str, Any], ...]:
    """The decisions in the order in which they were made; none for a call about which nothing had to be decided."""
    try:
        found = orjson.loads(detail or b"{}")
    except orjson.JSONDecodeError:
        return ()
    decisions = found.get("decisions") if isinstance(found, dict) else None
    return tuple(one for one in decisions if isinstance(one, dict)) if isinstance(decisions, list) else ()
