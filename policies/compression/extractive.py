"""Extraction: keeps the sentences and records that are most relevant to the instruction, in their order.

If the instruction says nothing about a text, its most informative pieces are kept: those with many numbers and ids, reports
of failure, the beginning and the end.
"""

import re
from collections.abc import Sequence

from policies.compression.relevance import query_terms, relevance
from policies.compression.truncate import truncation_priorities

_FAILURE_WORD = re.compile(
    r"(?i)\b(?:error|fail(?:ed|ure)?|fatal|exception|traceback|critical|denied|timed? ?out|panic|warning)\b"
)
_NUMBER_OR_NAME = re.compile(r"\d+|[A-Z]\w+")
_FAILURE_WEIGHT = 0.25
_DENSITY_WEIGHT = 0.2
_POSITION_WEIGHT = 0.1
_CHARACTERS_PER_FACT = 12  # a text with a number or name every twelve characters has the maximum density


def extraction_priorities(units: Sequence[str], contexts: Sequence[str], instruction: str) -> list[float]:
    """A priority for each unit: its overlap with the instruction (up to 1), plus its own information."""
    scores = relevance(contexts, query_terms(instruction))
    best = max(scores, default=0.0) or 1.0
    positions = truncation_priorities(units)
    return [
        score / best + _information(unit) + _POSITION_WEIGHT * position
        for score, unit, position in zip(scores, units, positions, strict=True)
    ]


def _information(unit: str) -> float:
    density = min(1.0, len(_NUMBER_OR_NAME.findall(unit)) * _CHARACTERS_PER_FACT / max(1, len(unit)))
    return _DENSITY_WEIGHT * density + (_FAILURE_WEIGHT if _FAILURE_WORD.search(unit) else 0.0)
