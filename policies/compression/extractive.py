"""Extraction: keeps the sentences and records that are most relevant to the instruction, in their order.

If the instruction says nothing about a text, its most informative pieces are kept: those with many numbers and ids, reports
of failure, the beginning and the end.
"""

import re
from collections.abc import Sequence

from policies.compression.relevance import relevance, terms_asked
from policies.compression.truncate import truncation_order

_ALARM = re.compile(
    r"(?i)\b(?:error|fail(?:ed|ure)?|fatal|exception|traceback|critical|denied|timed? ?out|panic|warning)\b"
)
_TELLING = re.compile(r"\d+|[A-Z]\w+")
_ALARM_WEIGHT = 0.25
_DENSITY_WEIGHT = 0.2
_POSITION_WEIGHT = 0.1
_CHARACTERS_PER_FACT = 12  # a text with a number or name every twelve characters has the maximum density


def extraction_order(units: Sequence[str], contexts: Sequence[str], instruction: str) -> list[float]:
    """A priority for each unit: its overlap with the instruction (up to 1), plus its own information."""
    scores = relevance(contexts, terms_asked(instruction))
    best = max(scores, default=0.0) or 1.0
    positions = truncation_order(units)
    return [
        score / best + _telling(unit) + _POSITION_WEIGHT * position
        for score, unit, position in zip(scores, units, positions, strict=True)
    ]


def _telling(unit: str) -> float:
    density = min(1.0, len(_TELLING.findall(unit)) * _CHARACTERS_PER_FACT / max(1, len(unit)))
    return _DENSITY_WEIGHT * density + (_ALARM_WEIGHT if _ALARM.search(unit) else 0.0)
