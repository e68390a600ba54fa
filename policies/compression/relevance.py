"""The relevance of sentences and records to the question.

The measure is the overlap of terms weighted by rarity, the core of TF-IDF retrieval (Spärck Jones, 1972), without its
vectors: a term of the instruction that occurs in df of n units counts log(1 + n/df).
"""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import log

from policies.compression.facts import stop_words

# Chinese, Japanese and Korean (`joined`) are split into pairs of characters, because they have no spaces between words, or suffixes
# on the words.
_TERM = re.compile(
    r"(?P<joined>[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+)|[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_a-zA-Z]{2,}"
)
_HIRAGANA = re.compile(r"[\u3040-\u309f]+")
_IDENTIFIER = re.compile(r"[^\W_](?:[\w./:@+#-]*\w)?")
_SUFFIXES = re.compile(r"(?:ations?|ings?|ions?|ments?|ers?|ed|es|s|e|y|ies)\Z")
_STEM_CHARACTERS_MIN = 4
_TERMS_MAX = 48  # more would be a document pasted into the question
_INSTRUCTION_CHARACTERS_MAX = 4000
_PASSAGE_CHARACTERS = 600
# Stems of words that tell an agent to go on, and ask for no information.
_GO_ON_STEMS = frozenset(
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
        *("继续", "繼續", "请继", "請繼", "任务", "任務", "続け", "続行", "계속", "진행"),
    }
)
_NEIGHBOUR_SHARE = 0.3  # an answer is often next to the line that names its subject
_RELEVANT_SHARE_OF_BEST = 0.6
_RELEVANT_SHARE_OF_TERMS_MIN = (
    0.35  # weighted by rarity, of the terms asked: a unit that shares less is about something else
)


def query_terms(instruction: str) -> tuple[str, ...]:
    """Stems and identifiers of an instruction, in lower case, at most 48: of a longer one the first and the last 24, because questions
    are at its beginning or end."""
    query = instruction[-_INSTRUCTION_CHARACTERS_MAX:]
    stop = stop_words()
    unique_terms: dict[str, None] = {}
    for match in _TERM.finditer(query):
        word, lower = match[0], match[0].lower()
        if match["joined"]:
            unique_terms.update(dict.fromkeys(_pairs(lower)))
        elif lower not in stop and (len(lower) > 2 or lower.isdigit() or word.isupper()):
            unique_terms.setdefault(_stem(lower))
    for identifier in _IDENTIFIER.findall(query):
        if not identifier.isalpha():
            unique_terms.setdefault(identifier.lower())
    terms = tuple(unique_terms)
    return terms if len(terms) <= _TERMS_MAX else terms[: _TERMS_MAX // 2] + terms[-_TERMS_MAX // 2 :]


def _pairs(text: str) -> Iterator[str]:
    """Overlapping pairs of characters, without those in hiragana, which are mostly endings and particles."""
    for pair in map("".join, pairwise(text)):
        if not _HIRAGANA.fullmatch(pair):
            yield pair


def relevance(units: Sequence[str], terms: Sequence[str]) -> list[float]:
    """A score for each unit, 0 if it shares nothing. Linear in the units times the terms (at most 48)."""
    return _with_neighbours(_rarity_scores([unit.lower() for unit in units], terms)[0])


def relevant_units(units: Sequence[str], instruction: str) -> frozenset[int]:
    """The units that the instruction asks about: those nearly as relevant as the best one, if that one is relevant enough."""
    terms = [term for term in query_terms(instruction) if term not in _GO_ON_STEMS]
    scores, score_of_all = _rarity_scores([unit.lower() for unit in units], terms)
    best = max(scores, default=0.0)
    if not best or best < _RELEVANT_SHARE_OF_TERMS_MIN * score_of_all:
        return frozenset()
    return frozenset(number for number, score in enumerate(scores) if score >= _RELEVANT_SHARE_OF_BEST * best)


def answer_match(texts: Sequence[str], instruction: str) -> float:
    """How well the best passage of the texts matches the question: 0 (not at all) to 1 (all its terms), weighted by rarity.

    A question finds the passage that answers it. A goal ("find out whether it came up well") and "continue with the task"
    find none, and do not tell what will be needed. Passages are windows of 600 characters that overlap by half.
    """
    terms = [term for term in query_terms(instruction) if term not in _GO_ON_STEMS]
    passages = [
        text[start : start + _PASSAGE_CHARACTERS] for text in map(str.lower, texts) for start in _window_starts(text)
    ]
    if not terms or not passages:
        return 0.0
    scores, score_of_all = _rarity_scores(passages, terms)
    return max(scores) / score_of_all


def _rarity_scores(lowered: Sequence[str], terms: Sequence[str]) -> tuple[list[float], float]:
    """The score of each unit for the terms it contains, by rarity, and the score of a unit with all of them."""
    scores, score_of_all = [0.0] * len(lowered), 0.0
    for term in terms:
        containing = _units_with(lowered, term)
        weight = log(1 + len(lowered) / max(1, len(containing))) * (1.0 if len(term) > 2 else 0.5)
        score_of_all += weight
        for unit in containing:
            scores[unit] += weight
    return scores, score_of_all


def _window_starts(text: str) -> range:
    return range(0, max(1, len(text) - _PASSAGE_CHARACTERS // 2), _PASSAGE_CHARACTERS // 2)


def _units_with(lowered: Sequence[str], term: str) -> list[int]:
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
    """The common part of a word's forms; identifiers and short words are left whole."""
    if len(word) <= _STEM_CHARACTERS_MIN or not word.isascii():
        return word
    stem = _SUFFIXES.sub("", word)
    return stem if len(stem) >= _STEM_CHARACTERS_MIN else word
