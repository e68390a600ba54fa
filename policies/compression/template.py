"""Boilerplate: long-winded phrases are shortened, courtesies of models and e-mails removed.

The phrases are data (`phrases.json`): common ones, and for each intent those that its answers open and close with. Only prose
is changed; code, JSON, logs, tables, quotations and text in backquotes keep their words.
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from policies.compression.structural import fenced_blocks, is_fenced
from policies.compression.text_kind import TextKind, kind_of

_ROUNDS_MAX = 6
_QUOTED = re.compile(r"(`[^`\n]*`|\"[^\"\n]*\"|“[^“”\n]*”|^[ \t]*>.*$)", re.MULTILINE)
_Phrases = Mapping[str, str]


def without_boilerplate(text: str, intent: str) -> str:
    """The text without boilerplate. For an unknown intent only the common phrases apply.

    Removing a phrase can join two halves of another. A text in which that happens more than six times in a row was made to do
    so, and is returned unchanged.
    """
    if kind_of(text) is not TextKind.PROSE:
        return text
    result = text
    for _ in range(_ROUNDS_MAX):
        shorter = _without_phrases(result, intent)
        if shorter == result:
            return result
        result = shorter
    return text


def _without_phrases(text: str, intent: str) -> str:
    blocks = []
    for block in fenced_blocks(text):
        joined = "\n".join(block)
        blocks.append(joined if is_fenced(block) else _replace_phrases(joined, intent))
    return "\n".join(blocks)


def _replace_phrases(text: str, intent: str) -> str:
    pattern, phrases = _phrases(intent)
    parts = _QUOTED.split(text)
    for number in range(0, len(parts), 2):  # the odd ones are quotations
        parts[number] = pattern.sub(lambda match: _replacement(match, phrases), parts[number])
    return "".join(parts)


def _replacement(match: re.Match[str], phrases: _Phrases) -> str:
    """The short phrase with its white space; a capital moves to the word that now comes first."""
    phrase, gap, following = match[1], match[2], match[3]
    short = phrases[" ".join(phrase.lower().split())]
    capital = phrase[0].isupper()
    if short:
        return (short[0].upper() + short[1:] if capital else short) + gap + following
    return following.upper() if capital else following


@cache
def _phrases(intent: str) -> tuple[re.Pattern[str], _Phrases]:
    """One pattern for all phrases, longest first, and their replacements."""
    source = files("policies.compression").joinpath("phrases.json").read_text(encoding="utf-8")
    data = json.loads(source)
    phrases: dict[str, str] = dict([*data["common"], *data.get(intent, ())])
    longest_first = sorted(phrases, key=lambda phrase: (-len(phrase), phrase))
    either = "|".join(r"[ \t]+".join(map(re.escape, phrase.split())) for phrase in longest_first)
    return re.compile(rf"(?i)(?<![\w-])({either})(?![\w-])([ \t]*)(\w?)"), phrases
