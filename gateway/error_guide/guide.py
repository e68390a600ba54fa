"""What is said of one name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Guide:
    """`told` is the HTTP status, or the level of a log event; nothing for a check of the doctor."""

    means: str
    do: str
    told: str = ""
