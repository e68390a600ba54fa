"""How much a sentence or record has to do with what is being asked.

Overlap of terms weighted by rarity, the core of TF-IDF retrieval (Spärck Jones, 1972), without its vectors: a term of
the instruction counts log(1 + n/df) where it occurs in df of n units.
"""

import re
from collections.abc import Sequence
from math import log

from policies.compression.facts import stop_words

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_a-zA-Z]{2,}")
_WHOLE = re.compile(r"[^\W_](?:[\w./:@+#-]*\w)?")
_ENDINGS = re.compile(r"(?:ations?|ings?|ions?|ments?|ers?|ed|es|s|e|y|ies)\Z")
_STEM_CHARACTERS_MIN = 4
_TERMS_MAX = 48  # more would be a document pasted into the question
_INSTRUCTION_CHARACTERS_MAX = 4000
_PASSAGE = 600
# Stems of what people say to an agent that is to go on: they ask for nothing.
_NODS = frozenset(
    {
        "again",
        "begin",
        "carry",
        "continu",
        "finish",
        "forward",
        "help",
        "keep",
        "next",
        "okay",
        "please",
        "proceed",
        "resum",
        "start",
        "step",
        "task",
        "thank",
        "work",
    }
)
_NEIGHBOUR_SHARE = 0.3  # an answer often stands beside the line that names its subject
_ASKED_SHARE_OF_BEST = 0.6
_ASKED_OF_ALL_MIN = 0.35  # of the terms asked, by rarity: a unit that shares less is not what is asked about


def terms_asked(instruction: str) -> tuple[str, ...]:
    """Stems and identifiers of an instruction, lower case, the first 48. Its end weighs most: questions stand there."""
    asked = instruction[-_INSTRUCTION_CHARACTERS_MAX:]
    stop = stop_words()
    found: dict[str, None] = {}
    for word in _WORD.findall(asked):
        lower = word.lower()
        if lower not in stop and (len(lower) > 2 or lower.isdigit() or word.isupper()):
            found.setdefault(_stem(lower))
    for whole in _WHOLE.findall(asked):
        if not whole.isalpha():
            found.setdefault(whole.lower())
    return tuple(found)[:_TERMS_MAX]


def relevance(units: Sequence[str], terms: Sequence[str]) -> list[float]:
    """A score for each unit, 0 where nothing is shared. Linear in the units times the terms (at most 48)."""
    return _with_neighbours(_overlaps([unit.lower() for unit in units], terms)[0])


def asked_about(units: Sequence[str], instruction: str) -> frozenset[int]:
    """The units that the instruction asks about: those nearly as much as the best one, if that one shares enough with it."""
    terms = [term for term in terms_asked(instruction) if term not in _NODS]
    scores, whole = _overlaps([unit.lower() for unit in units], terms)
    best = max(scores, default=0.0)
    if not best or best < _ASKED_OF_ALL_MIN * whole:
        return frozenset()
    return frozenset(number for number, score in enumerate(scores) if score >= _ASKED_SHARE_OF_BEST * best)


def answered(texts: Sequence[str], instruction: str) -> float:
    """How much of what is asked the best passage of the texts is about: 0 (nothing) to 1 (every term of it, by rarity).

    A question finds the passage that answers it; a goal ("find out whether it came up well") and a nod ("continue with the
    task") find none, and say nothing of what will be needed. Passages are windows of 600 characters, half of them shared.
    """
    terms = [term for term in terms_asked(instruction) if term not in _NODS]
    passages = [text[start : start + _PASSAGE] for text in map(str.lower, texts) for start in _starts(text)]
    if not terms or not passages:
        return 0.0
    scores, whole = _overlaps(passages, terms)
    return max(scores) / whole


def _overlaps(lowered: Sequence[str], terms: Sequence[str]) -> tuple[list[float], float]:
    """What every unit shares with the terms, by rarity, and what one that held all of them would."""
    scores, whole = [0.0] * len(lowered), 0.0
    for term in terms:
        holding = _holding(lowered, term)
        weight = log(1 + len(lowered) / max(1, len(holding))) * (1.0 if len(term) > 2 else 0.5)
        whole += weight
        for unit in holding:
            scores[unit] += weight
    return scores, whole


def _starts(text: str) -> range:
    return range(0, max(1, len(text) - _PASSAGE // 2), _PASSAGE // 2)


def _holding(lowered: Sequence[str], term: str) -> list[int]:
    if len(term) >= _STEM_CHARACTERS_MIN:
        return [number for number, unit in enumerate(lowered) if term in unit]
    alone = re.compile(rf"(?<![a-z0-9]){re.escape(term)}(?![a-z0-9])")
    return [number for number, unit in enumerate(lowered) if term in unit and alone.search(unit)]


def _with_neighbours(scores: list[float]) -> list[float]:
    if not any(scores):
        return scores
    around = [0.0, *scores, 0.0]
    return [
        max(around[number + 1], _NEIGHBOUR_SHARE * around[number], _NEIGHBOUR_SHARE * around[number + 2])
        for number in range(len(scores))
    ]


def _stem(word: str) -> str:
    """The part that the forms of a word share; identifiers and short words stay whole."""
    if len(word) <= _STEM_CHARACTERS_MIN or not word.isascii():
        return word
    stem = _ENDINGS.sub("", word)
    return stem if len(stem) >= _STEM_CHARACTERS_MIN else word
