"""What is said of one name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Guide:
    """`label` is the HTTP status, or the level of a log event; nothing for a check of the doctor."""

    meaning: str
    remedy: str
    label: str = ""
