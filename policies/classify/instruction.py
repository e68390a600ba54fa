"""The instruction in a prompt: what is asked, without the data that it is about.

Two things are removed before the verbs are analysed. Pasted data (fences, tagged blocks, long quotations, the text after
"Text:"), because an e-mail with "please send me the report" does not turn a step that summarizes it into `send`. And
templates, because the names in them are the author's variables.

All work is bounded: `CLIP_CHARS` from each end of a text, and patterns with bounded quantifiers.
"""

from __future__ import annotations

import re

from policies.classify.lexicon import lexicon

# Instructions are at the beginning or the end, with data between them. 4,000 + 4,000 characters are about 2,000 tokens.
CLIP_CHARS = 4_000
# How much of an instruction is kept after its data is removed: longer ones repeat themselves, and time grows with length.
INSTRUCTION_CHARS = 2_400
# Longer tagged blocks and quotations are content; shorter ones are words that the instruction refers to.
QUOTED_CHARS = 80
_TAGS_MAX = 40
_PYTHON_QUOTES = ('"""', "'''")

_DATA_NOUNS = (
    "subject|text|texts|document|documents|input|content|article|articles|transcript|context|email|emails|message|messages|review|reviews|conversation|"
    "chat history|history|data|passage|code|diff|log|logs|ticket|tickets|query|question|body|source|sources|paper|report|notes|post|"
    "resume|cv|job description|page|html|json|records?|examples?|example output|sample|comments?|tweet|story|essay|draft|answer|response|"
    "results?|statements?|passages?|submission|transcription|schema|findings|background|dokument|artikel|texte|texto|testo|contenu|contenido"
)
# Words that may precede such a noun in a label: "Search results:", "The student answer:".
_DATA_ADJECTIVES = (
    "the|your|user|input|begin|original|current|previous|existing|search|retrieved|research|reference|student|predicted|"
    "expected|source|online"
)
_OPEN_TAG = re.compile(r"<([A-Za-z_][\w.-]{0,40})(?:\s[^<>]{0,80})?>")
_CHAT_TOKEN = re.compile(r"<\|[A-Za-z_0-9]{1,30}\|>|<</?SYS>>|\[/?INST\]")
_FENCE = re.compile(r"```|~~~|\"\"\"|'''")
_TEMPLATE = re.compile(r"\{\{[^{}\n]{0,200}\}\}|\{%[^{}\n]{0,200}%\}|\$?\{[A-Za-z_$][^{}\n]{0,60}\}")
_QUOTE = re.compile(r"\"[^\"\n]{81,1500}\"|“[^”\n]{81,1500}”")
_DATA_LABEL = re.compile(
    rf"^[\W_]{{0,6}}(?:(?:{_DATA_ADJECTIVES}) ){{0,2}}(?:{_DATA_NOUNS})\s?\d{{0,2}}[\]\s*]{{0,4}}:",
    re.IGNORECASE,
)
_DATA_COLON = re.compile(
    r"\b(?:following|below|here (?:is|are)|this|these|the|given|folgenden?|suivant\w?|siguiente\w?|seguente\w?)\b"
    rf"[^:\n]{{0,60}}\b(?:{_DATA_NOUNS})\b[^:\n]{{0,30}}:\s*$",
    re.IGNORECASE,
)


def clip(text: str) -> str:
    """The beginning and the end of a text, or all of it if it is short."""
    if len(text) <= 2 * CLIP_CHARS:
        return text
    return f"{text[:CLIP_CHARS]}\n\n{text[-CLIP_CHARS:]}"


def instruction_part(text: str) -> str:
    """The part of a prompt that asks for something, at most `INSTRUCTION_CHARS`.

    If everything looks like data, the first lines are returned, as the best guess of what is asked.
    """
    bounded = clip(text)
    without_tokens = _CHAT_TOKEN.sub("\n", bounded)
    without_data = _TEMPLATE.sub(" _ ", _QUOTE.sub(" ", _without_tagged(_without_fences(without_tokens))))
    instruction = _without_labelled(without_data)
    if not any(c.isalpha() and c != "_" for c in instruction):
        instruction = without_data if any(c.isalpha() for c in without_data) else bounded
    return _head_and_tail(instruction)


def _head_and_tail(text: str) -> str:
    if len(text) <= INSTRUCTION_CHARS:
        return text
    tail_chars = INSTRUCTION_CHARS // 4
    return f"{text[: INSTRUCTION_CHARS - tail_chars]}\n{text[-tail_chars:]}"


def _without_fences(text: str) -> str:
    """Remove the text between pairs of fences; an unclosed fence is left alone."""
    parts: list[str] = []
    position = 0
    opening: re.Match[str] | None = None
    for fence in _FENCE.finditer(text):
        if opening is None:
            opening = fence
        elif fence.group() == opening.group():
            content = text[opening.end() : fence.start()]
            parts.append(text[position : opening.start()])
            # Triple quotes around a whole prompt are how Python authors write it, not data.
            is_prompt = fence.group() in _PYTHON_QUOTES and not text[: opening.start()].strip()
            parts.append(content if is_prompt or len(content) <= QUOTED_CHARS else " ")
            position = fence.end()
            opening = None
    parts.append(text[position:])
    return "".join(parts)


def _without_tagged(text: str) -> str:
    """Remove `<email>…</email>` and the like. Each tag name is searched for once, so the time is linear."""
    parts: list[str] = []
    position = 0
    unclosed: set[str] = set()
    for _ in range(_TAGS_MAX):
        opening = _OPEN_TAG.search(text, position)
        if opening is None:
            break
        name = opening.group(1)
        close = -1 if name in unclosed else text.find(f"</{name}>", opening.end())
        parts.append(text[position : opening.start()])
        position = opening.end()
        if close < 0:
            unclosed.add(name)
        elif name.lower() not in lexicon().grammar.instruction_tags and close - opening.end() > QUOTED_CHARS:
            position = close + len(name) + 3
    parts.append(text[position:])
    return " ".join(parts)


def _without_labelled(text: str) -> str:
    """Remove the paragraph after a label such as "Transcript:" or a line such as "Summarize this text:"."""
    lines_kept: list[str] = []
    in_data = False
    waiting = False
    for line in text.split("\n"):
        bare = line.strip()
        if _DATA_LABEL.match(bare):
            in_data = True
            waiting = bare.rstrip("*]) ").endswith(":")
            continue
        if in_data and bare:
            waiting = False
            continue
        if in_data and not bare:
            in_data = waiting
            continue
        if bare.startswith(">"):
            continue
        lines_kept.append(line)
        if bare.endswith(":") and _DATA_COLON.search(bare[-160:]):
            in_data = waiting = True
    return "\n".join(lines_kept)
