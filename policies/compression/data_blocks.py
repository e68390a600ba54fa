"""Data inside of what somebody says: JSON, and texts between marks, in a turn that also holds the instruction.

A step is often one turn: an instruction with the data that it is about. The instruction is not touched. Data is told from
it by its marks only: JSON that parses, a code fence around JSON, triple quotes, a tag that names data (`<document>`).
What is loose prose may be part of the instruction, and tags of other names (`<rules>`) often are.
"""

import json
import re
from collections.abc import Iterator

from policies.compression.json_text import looks_like_json
from policies.compression.policy import Aggressiveness
from policies.compression.structural import structural

_CHARACTERS_MIN = 200  # less is an example, or saves next to nothing
_JSON_START = re.compile(r"^[ \t]*(?=[\[{])", re.MULTILINE)
_REST_OF_LINE = re.compile(r"[ \t\r]*(?:\n|\Z)")
_JSON_TRIES_MAX = 32  # a text that only looks like JSON must not cost a parse for every line
_DATA = (
    r"articles?|attachments?|contents?|contexts?|csv|data|datasets?|documents?|emails?|inputs?|json|logs?|messages?|pages?|"
    r"passages?|records?|reports?|results?|search_results?|tables?|texts?|transcripts?"
)
# Lines that open or close something: a fence, triple quotes, a tag that names data.
_MARK = re.compile(
    rf'(?m)^(?:(?P<fence>```|~~~)[^\n]*|(?P<quotes>""")[ \t]*|<(?P<close>/?)(?P<tag>{_DATA})(?: [^<>\n]*)?>[ \t]*)$'
)
_DECODER = json.JSONDecoder()
Span = tuple[int, int]


def data_spans(text: str) -> list[Span]:
    """Where in the text data stands, from and to, in order and apart from each other. Linear."""
    if len(text) < _CHARACTERS_MIN:
        return []
    found: list[Span] = []
    position = tries = 0
    for opening, start, end, after in _marked(text):
        plain = _plain_json(text, position, opening, _JSON_TRIES_MAX - tries)
        tries += len(plain)
        found += [span for span in plain if span[0] < span[1]]
        if start < end:
            found.append((start, end))
        position = after
    return [(start, end) for start, end in found if end - start >= _CHARACTERS_MIN]


def without_data(text: str) -> str:
    """What is said around the data; all of it where there is nothing around."""
    said, position = [], 0
    for start, end in data_spans(text):
        said.append(text[position:start])
        position = end
    around = "".join([*said, text[position:]])
    return around if around.strip() else text


def data_tidied(text: str) -> str:
    """The text with its data in fewer characters: JSON minified, lines without blanks at their end, repetition counted.

    Whatever the policy, no more than that: this is what is being asked about, and nothing of it may be missing.
    """
    parts, position = [], 0
    for start, end in data_spans(text):
        parts += [text[position:start], structural(text[start:end], Aggressiveness.LOW)]
        position = end
    return "".join([*parts, text[position:]])


def _marked(text: str) -> Iterator[tuple[int, int, int, int]]:
    """Where each marked block opens, its data from and to (nothing in a fence around anything but JSON), where it ends.

    The last one is the end of the text. A mark that is never closed takes the rest of the text, which is then left alone.
    """
    opened: re.Match[str] | None = None
    for mark in _MARK.finditer(text):
        if opened is None:
            opened = None if mark["close"] else mark
        elif _closes(mark, opened):
            start, end = opened.end() + 1, mark.start() - 1
            if opened["fence"] and not looks_like_json(text[start:end]):
                end = start
            yield opened.start(), start, end, mark.end()
            opened = None
    rest = len(text) if opened is None else opened.start()
    yield rest, rest, rest, rest


def _closes(mark: re.Match[str], opened: re.Match[str]) -> bool:
    if opened["fence"]:
        return mark["fence"] == opened["fence"] and not mark[0].strip().strip(opened["fence"][0])
    if opened["quotes"]:
        return mark["quotes"] is not None
    return bool(mark["close"]) and mark["tag"] == opened["tag"]


def _plain_json(text: str, position: int, stop: int, tries_max: int) -> list[Span]:
    """JSON that begins a line and ends one; an empty span for each try in vain."""
    found: list[Span] = []
    while len(found) < tries_max:
        line = _JSON_START.search(text, position, stop)
        if line is None:
            break
        start = line.end()
        try:
            end = _DECODER.raw_decode(text, start)[1]
        except (ValueError, RecursionError):
            end = start
        is_whole = end <= stop and _REST_OF_LINE.match(text, end) and looks_like_json(text[start:end])
        found.append((start, end if is_whole else start))
        position = max(end, start + 1)
    return found
