"""Quality: how much of a text's content is still there after compression, measured by comparing the two texts.

It is neither an opinion about style nor a constant per aggressiveness: it is the share of numbers, identifiers, names and
rare words that were kept, and again the same share for the records that the instruction is about. If something was cut out,
records also count as wholes: a number that also occurs elsewhere does not make up for the lost record.
"""

import re

from policies.compression.facts import Facts, facts_of, facts_of_terms, is_markup, plain_terms, terms_of
from policies.compression.markers import without_markers
from policies.compression.relevance import query_terms, relevance
from policies.values import value_class

# What is asked about weighs most. A lost number or id cannot be guessed, a lost name often can, a rare word usually.
_WEIGHTS = {"numbers": 0.2, "identifiers": 0.2, "names": 0.15, "rare": 0.1}
_ASKED_WEIGHT = 0.35
_RECORDS_WEIGHT = 0.1
_RECORD_END = re.compile(r"\n|(?<=[.!?;])\s|(?<=[。！？；])|\},")
_ASKED_RECORDS_MAX = 40
_ASKED_SHARE_OF_BEST = 0.6


def quality(before: str, after: str, instruction: str) -> float:
    """0–1: the weighted share of the content of `before` that `after` still has; 1.0 for a text without content.

    Repetition and order do not count. `instruction` may be "". Linear in both texts.
    """
    return 1.0 if before == after else QualityScorer.of(before, instruction, ContentReader()).score_rephrased(after)


@value_class
class TextContent:
    """The content of a text: its terms, as written and in lower case, and its distinct records, each as its terms."""

    words: frozenset[str]
    records: frozenset[tuple[str, ...]]


class ContentReader:
    """Parses texts that share most of their records, such as a text and its cuts, so that each record is parsed once."""

    def __init__(self) -> None:
        self._records: dict[str, tuple[tuple[str, ...], frozenset[str]]] = {}
        self._texts: dict[str, TextContent] = {}

    def cached_content(self, text: str) -> TextContent:
        """The content of a text that many others are compared with; cached."""
        cached = self._texts.get(text)
        if cached is None:
            cached = self._texts[text] = self.parse(text)
        return cached

    def parse(self, text: str) -> TextContent:
        unmarked = without_markers(text)
        parsed_records = [self._parse_record(record) for record in _RECORD_END.split(unmarked)]
        records = frozenset(terms for terms, _ in parsed_records if terms)
        # No term spans two records, but a markup tag, which is invisible, may.
        words = _words(text) if is_markup(unmarked) else frozenset().union(*(words for _, words in parsed_records))
        return TextContent(words, records)

    def terms(self, record: str) -> tuple[str, ...]:
        """The content of a record, without white space and punctuation."""
        return self._parse_record(record)[0]

    def _parse_record(self, record: str) -> tuple[tuple[str, ...], frozenset[str]]:
        cached = self._records.get(record)
        if cached is None:
            words = plain_terms(record)
            cached = tuple(terms_of(record)), frozenset((*words, *map(str.lower, words)))
            self._records[record] = cached
        return cached


@value_class
class QualityScorer:
    """The content of one text, ready to score several shortened versions of it."""

    text: str
    facts: Facts
    relevant_records: tuple[str, ...]
    words: frozenset[str]
    reader: ContentReader

    @classmethod
    def of(cls, before: str, instruction: str, reader: ContentReader) -> "QualityScorer":
        terms = terms_of(before)
        relevant_records = tuple(_relevant_records(before, instruction))
        return cls(before, facts_of_terms(terms), relevant_records, frozenset(map(str.lower, terms)), reader)

    def score_rephrased(self, after: str) -> float:
        """The score of a text that says the same in other words or another form: a fact counts wherever it is."""
        words = _words(after)
        shares = _shares(self.facts, words)
        relevant_shares = _shares(facts_of("\n".join(self.relevant_records)), words) if self.relevant_records else []
        if relevant_shares:
            shares.append((_ASKED_WEIGHT, _mean(relevant_shares)))
        return self._score(shares, words)

    def score_cut(self, after: str) -> float:
        """The score of a text with parts cut out: 1.0 only if every record is still there."""
        if after == self.text:
            return 1.0
        content = self.reader.parse(after)
        relevant_records = frozenset(terms for record in self.relevant_records if (terms := self.reader.terms(record)))
        shares = _shares(self.facts, content.words)
        for weight, expected_terms in (
            (_ASKED_WEIGHT, relevant_records),
            (_RECORDS_WEIGHT, self.reader.cached_content(self.text).records),
        ):
            if expected_terms:
                shares.append((weight, len(expected_terms & content.records) / len(expected_terms)))
        return self._score(shares, content.words)

    def _score(self, shares: list[tuple[float, float]], words: frozenset[str]) -> float:
        if shares:
            return _mean(shares)
        return len(self.words & words) / len(self.words) if self.words else 1.0


def _words(text: str) -> frozenset[str]:
    terms = terms_of(text)
    return frozenset(terms) | frozenset(map(str.lower, terms))


def _mean(shares: list[tuple[float, float]]) -> float:
    return sum(weight * share for weight, share in shares) / sum(weight for weight, _ in shares)


def _shares(facts: Facts, words: frozenset[str]) -> list[tuple[float, float]]:
    """Weight and kept share of each class that the text has terms of."""
    classes = ((weight, getattr(facts, name)) for name, weight in _WEIGHTS.items())
    return [(weight, len(terms & words) / len(terms)) for weight, terms in classes if terms]


def _relevant_records(text: str, instruction: str) -> list[str]:
    """The lines, sentences and JSON records that are most relevant to the instruction."""
    terms = query_terms(instruction)
    if not terms:
        return []
    records = _RECORD_END.split(text)
    scores = relevance(records, terms)
    best = max(scores, default=0.0)
    if not best:
        return []
    ranked = sorted(range(len(records)), key=lambda number: -scores[number])[:_ASKED_RECORDS_MAX]
    return [records[number] for number in ranked if scores[number] >= best * _ASKED_SHARE_OF_BEST]
