"""The facts of a text: its numbers, identifiers, names and rare words.

Later questions ask for these, so a compressed text must not lose them.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Set
from functools import cache
from importlib.resources import files

from policies.compression.markers import without_markers
from policies.values import value_class

_TERM = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]{1,2}|[^\W_](?:[\w./:@+#-]*\w)?")
_NUMBER = re.compile(r"[\d.,:%/-]+\Z")
_JOINED_PARTS = re.compile(r"[_./:@#]|[a-z][A-Z]")
_ISO = re.compile(r"(?<=\d)T(?=\d\d:)")
_TAG = re.compile(r"<[^<>]*>")
_RARE_OCCURRENCES_MAX = 2
_RARE_CHARACTERS_MIN = 5
_ID_CHARACTERS_MIN = 4
_NUMBER_DIGITS_MIN = 5


@value_class
class Facts:
    """Distinct terms by kind. Words are in lower case; everything else is as written."""

    numbers: frozenset[str]
    identifiers: frozenset[str]
    names: frozenset[str]
    rare: frozenset[str]


def facts_of(text: str) -> Facts:
    """Linear in the text. Markers of gaps do not count."""
    return facts_of_terms(terms_of(text))


def terms_of(text: str) -> Counter[str]:
    """The number of occurrences of each term. Of markup only the visible text counts; a time stamp's date and time are two terms."""
    text = without_markers(text)
    return Counter(plain_terms(_TAG.sub(" ", text) if is_markup(text) else text))


def is_markup(text: str) -> bool:
    return text.lstrip()[:1] == "<"


def plain_terms(text: str) -> list[str]:
    """The terms of a text without markers and markup, in order."""
    return _TERM.findall(_ISO.sub(" ", text) if "T" in text else text)


def first_mentions(text: str, identifiers: Set[str]) -> dict[str, int]:
    """The first position of each wanted term that occurs in the text, in order."""
    first_positions: dict[str, int] = {}
    for term in _TERM.finditer(_ISO.sub(" ", text)):
        if term[0] in identifiers:
            first_positions.setdefault(term[0], term.start())
    return first_positions


def identifiers_of(text: str) -> frozenset[str]:
    """Ids, paths, addresses and long numbers that another message may refer to."""
    return frozenset(term for term in terms_of(text) if len(term) >= _ID_CHARACTERS_MIN and _is_identifier(term))


@cache
def stop_words() -> frozenset[str]:
    """Words without information about a subject."""
    source = files("policies.compression").joinpath("words.json").read_text(encoding="utf-8")
    return frozenset(json.loads(source)["stop"])


def _is_identifier(term: str) -> bool:
    if _NUMBER.match(term):  # order numbers and IP addresses, but neither amounts nor times
        return (term.isdigit() and len(term) >= _NUMBER_DIGITS_MIN) or term.count(".") == 3
    if any(map(str.isdigit, term)):
        return True
    return bool(_JOINED_PARTS.search(term))


def facts_of_terms(terms: Mapping[str, int]) -> Facts:
    """Counted terms, sorted by kind."""
    numbers, identifiers, names, rare = set(), set(), set(), set()
    stop = stop_words()
    for term, count in terms.items():
        if _NUMBER.match(term):
            numbers.add(term)
        elif any(map(str.isdigit, term)) or _JOINED_PARTS.search(term):
            identifiers.add(term)
        elif term.lower() in stop:
            continue
        elif term[0].isupper() and len(term) > 1:
            names.add(term)
        elif count <= _RARE_OCCURRENCES_MAX and (len(term) >= _RARE_CHARACTERS_MIN or not term.isascii()):
            rare.add(term.lower())
    return Facts(frozenset(numbers), frozenset(identifiers), frozenset(names), frozenset(rare))
