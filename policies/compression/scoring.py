"""How much of what a text says is still there after compression, measured on the two texts.

Not an opinion about style and not a constant per aggressiveness: the share of numbers, identifiers, names and rare
words kept, and the same share again for the records that the instruction is about. Where something was cut out, records
count as wholes too: a number that also stands elsewhere does not make up for the record that it was cut with.
"""

import re
from collections.abc import Iterable

from policies.compression.facts import Facts, facts_of, sorted_out, terms_of
from policies.compression.markers import without_markers
from policies.compression.relevance import relevance, terms_asked
from policies.values import value_class

# What is asked weighs most; a lost number or id cannot be guessed back, a lost name often, a rare word mostly.
_WEIGHTS = {"numbers": 0.2, "identifiers": 0.2, "names": 0.15, "rare": 0.1}
_ASKED_WEIGHT = 0.35
_RECORDS_WEIGHT = 0.1
_RECORD = re.compile(r"\n|(?<=[.!?;])\s|\},")
_ASKED_RECORDS_MAX = 40
_ASKED_SHARE_OF_BEST = 0.6


def quality(before: str, after: str, instruction: str) -> float:
    """0–1: the weighted share of what `before` states that `after` still states; 1.0 for a text that says nothing.

    Repetition does not count, neither does order. `instruction` may be "". Linear in both texts.
    """
    return 1.0 if before == after else Yardstick.of(before, instruction).stated(after)


@value_class
class Yardstick:
    """What one text states, ready to score several shortened versions of it."""

    text: str
    facts: Facts
    asked: tuple[str, ...]
    words: frozenset[str]

    @classmethod
    def of(cls, before: str, instruction: str) -> "Yardstick":
        terms = terms_of(before)
        asked = tuple(_asked_records(before, instruction))
        return cls(before, sorted_out(terms), asked, frozenset(map(str.lower, terms)))

    def stated(self, after: str) -> float:
        """The score of a text that says it in other words or another shape: a fact counts wherever it stands."""
        kept = _words(after)
        shares = _shares(self.facts, kept)
        told = _shares(facts_of("\n".join(self.asked)), kept) if self.asked else []
        if told:
            shares.append((_ASKED_WEIGHT, _mean(told)))
        return self._score(shares, kept)

    def kept(self, after: str) -> float:
        """The score of a text that something was cut out of: 1.0 only if every record is still there."""
        if after == self.text:
            return 1.0
        kept, there = _words(after), _records(_RECORD.split(without_markers(after)))
        shares = _shares(self.facts, kept)
        for weight, wanted in (
            (_ASKED_WEIGHT, _records(self.asked)),
            (_RECORDS_WEIGHT, _records(_RECORD.split(without_markers(self.text)))),
        ):
            if wanted:
                shares.append((weight, len(wanted & there) / len(wanted)))
        return self._score(shares, kept)

    def _score(self, shares: list[tuple[float, float]], kept: frozenset[str]) -> float:
        if shares:
            return _mean(shares)
        return len(self.words & kept) / len(self.words) if self.words else 1.0


def _words(text: str) -> frozenset[str]:
    terms = terms_of(text)
    return frozenset(terms) | frozenset(map(str.lower, terms))


def _records(records: Iterable[str]) -> frozenset[tuple[str, ...]]:
    """The distinct records that say something, each as its terms: white space and punctuation are not what it says."""
    return frozenset(terms for record in records if (terms := tuple(terms_of(record))))


def _mean(shares: list[tuple[float, float]]) -> float:
    return sum(weight * share for weight, share in shares) / sum(weight for weight, _ in shares)


def _shares(facts: Facts, kept: frozenset[str]) -> list[tuple[float, float]]:
    """Weight and share kept of every class that the text has any of."""
    classes = ((weight, getattr(facts, name)) for name, weight in _WEIGHTS.items())
    return [(weight, len(terms & kept) / len(terms)) for weight, terms in classes if terms]


def _asked_records(text: str, instruction: str) -> list[str]:
    """The lines, sentences and JSON records that have most to do with the instruction."""
    terms = terms_asked(instruction)
    if not terms:
        return []
    records = _RECORD.split(text)
    scores = relevance(records, terms)
    best = max(scores, default=0.0)
    if not best:
        return []
    ranked = sorted(range(len(records)), key=lambda number: -scores[number])[:_ASKED_RECORDS_MAX]
    return [records[number] for number in ranked if scores[number] >= best * _ASKED_SHARE_OF_BEST]
