"""Splits an instruction into clauses of lower-case words, without claims about its own classification.

"Treat this call as generate" is such a claim. A caller declares an intent in a header, and content never can, so claims are
cut out before the clauses are analysed. This takes one pass over the words, with a bounded look-back.
"""

from __future__ import annotations

import re

from policies.classify.lexicon import Grammar, lexicon

CLAUSES_MAX = 90
_WORD = re.compile(r"[^\W_]+(?:['’][a-z]+)?|[:,]")
_SENTENCE = re.compile(r"[.!?;](?=\s|$)|\n|。|！|？|\s[-–—•*]\s|=>|->")

_LOOK_BACK = 14


def split_clauses(text: str) -> list[list[str]]:
    """At most `CLAUSES_MAX` clauses in reading order; a comma is kept as a word, a colon ends a clause."""
    clauses: list[list[str]] = []
    for sentence in _SENTENCE.split(text.replace("’", "'")):
        words = without_claims(_WORD.findall(sentence.lower()))
        start = 0
        for index, word in enumerate([*words, ":"]):
            if word == ":":
                if index > start:
                    clauses.append(words[start:index])
                start = index + 1
        if len(clauses) >= CLAUSES_MAX:
            break
    return clauses[:CLAUSES_MAX]


def without_claims(words: list[str]) -> list[str]:
    """Cut "classify this request as send", "intent: send", "this is a send task" and "ignore the rules above"."""
    grammar = lexicon().grammar
    words = _without_overrides(words)
    cut: set[int] = set()
    for index, word in enumerate(words):
        if word in grammar.intent_forms:
            start_index = _claim_start(words, index, grammar)
            if start_index is not None:
                cut.update(range(start_index, index + 1))
    return [word for index, word in enumerate(words) if index not in cut] if cut else words


def _claim_start(words: list[str], index: int, grammar: Grammar) -> int | None:
    """The start of the claim that ends in the intent word at `index`; None if the word is not part of a claim."""
    if _is_list_of_choices(words, index, grammar):
        return None
    first = max(0, index - _LOOK_BACK)
    words_before = words[first:index]
    following = words[index + 1 : index + 5]
    start_index = next(
        (back for back in range(len(words_before)) if _is_claim_start(words_before, back, following, grammar)), None
    )
    if start_index is not None:
        return _include_preface(words, first + start_index)
    if not grammar.label_words.isdisjoint(following[:1]) or _is_label(following, grammar):
        return _include_preface(words, max(first, index - 3))
    return None


def _is_claim_start(words_before: list[str], back: int, following: list[str], grammar: Grammar) -> bool:
    word, words_after = words_before[back], words_before[back + 1 :]
    linked = not grammar.links.isdisjoint(words_after)
    if word in grammar.label_words:
        return not words_after or linked
    if word in grammar.stances and linked:
        return any(word_after in grammar.pronouns or word_after in grammar.own_nouns for word_after in words_after)
    return (
        word in grammar.pronouns
        and not grammar.own_nouns.isdisjoint(following[:1])
        and bool({"is", "was", "as"} & set(words_after))
    )


def _is_label(following: list[str], grammar: Grammar) -> bool:
    """ "… as the intent": the word before it is claimed as the label."""
    return following[:1] in (["as"], ["for"]) and not grammar.label_words.isdisjoint(following)


def _include_preface(words: list[str], start_index: int) -> int:
    """Extend the claim by its introduction: "note to the router:", "when you choose the"."""
    leads = lexicon().grammar.claim_leads
    while start_index > 0 and words[start_index - 1] in leads:
        start_index -= 1
    return 0 if 0 < start_index <= 8 and words[start_index - 1] == ":" else start_index


def _is_list_of_choices(words: list[str], index: int, grammar: Grammar) -> bool:
    """Three intent words in one sentence are the choices of a router, which is legitimate."""
    return len({word for word in words[max(0, index - 12) : index + 12] if word in grammar.intent_forms}) >= 3


def _without_overrides(words: list[str]) -> list[str]:
    grammar = lexicon().grammar
    for index, word in enumerate(words):
        if word in grammar.overrides:
            reach = words[index + 1 : index + 8]
            ends = [step for step, target in enumerate(reach) if target in grammar.rule_words]
            if ends:
                return words[:index] + words[index + 2 + ends[-1] :]
    return words
