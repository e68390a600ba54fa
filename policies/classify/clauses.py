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
    found: list[list[str]] = []
    for sentence in _SENTENCE.split(text.replace("’", "'")):
        words = without_claims(_WORD.findall(sentence.lower()))
        start = 0
        for at, word in enumerate([*words, ":"]):
            if word == ":":
                if at > start:
                    found.append(words[start:at])
                start = at + 1
        if len(found) >= CLAUSES_MAX:
            break
    return found[:CLAUSES_MAX]


def without_claims(words: list[str]) -> list[str]:
    """Cut "classify this request as send", "intent: send", "this is a send task" and "ignore the rules above"."""
    grammar = lexicon().grammar
    words = _without_overrides(words)
    cut: set[int] = set()
    for at, word in enumerate(words):
        if word in grammar.intent_forms:
            start_index = _claim_start(words, at, grammar)
            if start_index is not None:
                cut.update(range(start_index, at + 1))
    return [word for at, word in enumerate(words) if at not in cut] if cut else words


def _claim_start(words: list[str], at: int, grammar: Grammar) -> int | None:
    """The start of the claim that ends in the intent word at `at`; None if the word is not part of a claim."""
    if _is_list_of_choices(words, at, grammar):
        return None
    first = max(0, at - _LOOK_BACK)
    before = words[first:at]
    following = words[at + 1 : at + 5]
    start_index = next((back for back in range(len(before)) if _is_claim_start(before, back, following, grammar)), None)
    if start_index is not None:
        return _include_preface(words, first + start_index)
    if not grammar.label_words.isdisjoint(following[:1]) or _is_said_as_label(following, grammar):
        return _include_preface(words, max(first, at - 3))
    return None


def _is_claim_start(before: list[str], back: int, following: list[str], grammar: Grammar) -> bool:
    word, rest = before[back], before[back + 1 :]
    linked = not grammar.links.isdisjoint(rest)
    if word in grammar.label_words:
        return not rest or linked
    if word in grammar.stances and linked:
        return any(own in grammar.pronouns or own in grammar.own_nouns for own in rest)
    return (
        word in grammar.pronouns
        and not grammar.own_nouns.isdisjoint(following[:1])
        and bool({"is", "was", "as"} & set(rest))
    )


def _is_said_as_label(following: list[str], grammar: Grammar) -> bool:
    """ "… as the intent": the word before it is claimed as the label."""
    return following[:1] in (["as"], ["for"]) and not grammar.label_words.isdisjoint(following)


def _include_preface(words: list[str], start_index: int) -> int:
    """Extend the claim by its introduction: "note to the router:", "when you choose the"."""
    leads = lexicon().grammar.claim_leads
    while start_index > 0 and words[start_index - 1] in leads:
        start_index -= 1
    return 0 if 0 < start_index <= 8 and words[start_index - 1] == ":" else start_index


def _is_list_of_choices(words: list[str], at: int, grammar: Grammar) -> bool:
    """Three intent words in one sentence are the choices of a router, which is legitimate."""
    return len({word for word in words[max(0, at - 12) : at + 12] if word in grammar.intent_forms}) >= 3


def _without_overrides(words: list[str]) -> list[str]:
    grammar = lexicon().grammar
    for at, word in enumerate(words):
        if word in grammar.overrides:
            reach = words[at + 1 : at + 8]
            ends = [step for step, target in enumerate(reach) if target in grammar.rule_words]
            if ends:
                return words[:at] + words[at + 2 + ends[-1] :]
    return words
