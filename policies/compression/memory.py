"""Memory: what an agent carries from run to run has its own size limit, and is shortened to it before anything else.

Information about the user is kept, and of past runs the newest. Memory within its limit is left alone by all lossy strategies.
"""

import re
from collections.abc import Callable, Sequence

from policies.compression.json_pieces import json_pieces
from policies.compression.json_text import minified
from policies.compression.pieces import Pieces, text_pieces
from policies.compression.relevance import query_terms, relevance
from policies.compression.text_kind import TextKind, kind_of

MEMORY_TOKENS_MAX = 800
_USER = re.compile(
    r"(?i)\b(?:user(?:'s)?(?:[ _-]?(?:context|profile|name|info|preferences?))?|profile|preferences?|prefers|personal|account|"
    r"language|time ?zone|locale|company|role)\b"
)
_DATE = re.compile(r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d)?)?")
_USER_WEIGHT = 2.0
_RECENCY_WEIGHT = 1.0
_ASKED_WEIGHT = 0.5
_TRIES_MAX = 6  # each makes the text at least a tenth smaller


def shorten_memory(text: str, tokens_max: int, count: Callable[[str], int], instruction: str) -> str:
    """The memory shortened to `tokens_max`, or as close as its parts allow. Unchanged if it is small enough."""
    tokens = count(text)
    if tokens <= tokens_max:
        return text
    pieces = _pieces(text)
    priorities = _priorities(pieces.contexts, instruction)
    share = tokens_max / tokens
    for _ in range(_TRIES_MAX):
        cut = _cut(pieces, priorities, share)
        size = count(cut)
        if size <= tokens_max:
            return cut
        share *= min(0.9, tokens_max / size)
    return cut if size < tokens else text


def _pieces(text: str) -> Pieces:
    kind = kind_of(text)
    return json_pieces(minified(text)) if kind is TextKind.JSON else text_pieces(text, TextKind.PROSE)


def _priorities(contexts: Sequence[str], instruction: str) -> list[float]:
    """User context first, then the newest, with a preference for what is asked about."""
    scores = relevance(contexts, query_terms(instruction))
    best = max(scores, default=0.0) or 1.0
    return [
        (_USER_WEIGHT if _USER.search(context) else 0.0) + _RECENCY_WEIGHT * recency + _ASKED_WEIGHT * score / best
        for context, recency, score in zip(contexts, _recency(contexts), scores, strict=True)
    ]


def _recency(contexts: Sequence[str]) -> list[float]:
    """0–1 for each piece, by its date or the last date before it; without dates, later pieces are newer."""
    dates: list[str] = []
    current = ""
    for context in contexts:
        dates_found = _DATE.findall(context)
        current = max(dates_found) if dates_found else current
        dates.append(current)
    distinct_dates = sorted(set(dates))
    if len(distinct_dates) < 2:
        return [number / max(1, len(contexts) - 1) for number in range(len(contexts))]
    return [distinct_dates.index(date) / (len(distinct_dates) - 1) for date in dates]


def _cut(pieces: Pieces, priorities: Sequence[float], share: float) -> str:
    sizes = [len(unit) for unit in pieces.units]
    allowed = share * sum(sizes)
    kept: set[int] = set()
    for number in sorted(range(len(sizes)), key=lambda number: (-priorities[number], -number)):
        if sizes[number] <= allowed:
            kept.add(number)
            allowed -= sizes[number]
    return pieces.render(kept)
