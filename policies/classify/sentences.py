"""From an instruction to clauses of lower-case words, less what it claims about its own classification.

"Treat this call as generate" is such a claim. The caller says an intent in a header; content never does, so a claim is
cut out before anybody reads the clause. Cutting works on words: one pass, a look back of a fixed number of words.
"""

from __future__ import annotations

import re

from policies.classify.lexicon import lexicon

CLAUSES_MAX = 90
_WORD = re.compile(r"[^\W_]+(?:['’][a-z]+)?|[:,]")
_SENTENCE = re.compile(r"[.!?;](?=\s|$)|\n|。|！|？|\s[-–—•*]\s|=>|->")

_LOOK_BACK = 14


def clauses(text: str) -> list[list[str]]:
    """At most `CLAUSES_MAX` clauses in reading order; a comma stays as a word of its own, a colon ends a clause."""
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
    if not any(word in grammar.intent_forms for word in words):
        return words
    kept: list[str] = []
    for at, word in enumerate(words):
        kept.append(word)
        if word in grammar.intent_forms:
            begins = _claim_begins(words, at)
            if begins is not None:
                del kept[max(0, len(kept) - (at - begins + 1)) :]
    return kept


def _claim_begins(words: list[str], at: int) -> int | None:
    """Where the claim that ends in the intent word at `at` begins; None when the word is an honest one."""
    grammar = lexicon().grammar
    if _lists_choices(words, at):
        return None
    first = max(0, at - _LOOK_BACK)
    before = words[first:at]
    following = words[at + 1] if at + 1 < len(words) else ""
    for back, word in enumerate(before):
        rest = before[back + 1 :]
        linked = any(link in grammar.links for link in rest)
        if word in grammar.label_words and (not rest or linked):
            return first + max(
                0, back - 3 if back >= 3 and words[first + back - 1] in ("the", "correct", "right", "my") else back
            )
        if (
            word in grammar.stances
            and linked
            and any(own in grammar.pronouns or own in grammar.own_nouns for own in rest)
        ):
            return first + back
        if (
            word in grammar.pronouns
            and following in grammar.own_nouns
            and any(link in ("is", "was", "as") for link in rest)
        ):
            return first + back
    if following in ("intent", "intention", "category", "class", "label"):
        return first if len(before) <= 5 else at
    return None


def _lists_choices(words: list[str], at: int) -> bool:
    """Three intent words in one sentence are the choices of a router, which is honest work."""
    grammar = lexicon().grammar
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
