"""Numbers as people type them into forms."""

from __future__ import annotations

from gateway.errors import BadRequest


def parse_integer(name: str, text: str) -> int:
    """12,345 or 12345. Raises `BadRequest` with the field's name."""
    try:
        return int(text.replace(",", "").strip())
    except ValueError:
        raise BadRequest.field(name, f"must be a whole number; given {text[:40]!r}") from None


def parse_decimal(name: str, text: str) -> float:
    """Raises `BadRequest` with the field's name; ranges are the API's business."""
    try:
        return float(text.strip())
    except ValueError:
        raise BadRequest.field(name, f"must be a number; given {text[:40]!r}") from None
