"""The decisions about one call in its usage row: every rung of the ladder, routing and compression, each with its reason."""

from __future__ import annotations

from typing import Any

import orjson


def decisions_of(detail: str) -> tuple[dict[str, Any], ...]:
    """The decisions in order; empty for a call about which nothing had to be decided."""
    try:
        value = orjson.loads(detail or b"{}")
    except orjson.JSONDecodeError:
        return ()
    decisions = value.get("decisions") if isinstance(value, dict) else None
    return (
        tuple(decision for decision in decisions if isinstance(decision, dict)) if isinstance(decisions, list) else ()
    )
