"""Data inside a message that also has the instruction: JSON, and texts between marks.

A step is often a single turn: an instruction with the data that it is about. The instruction is left alone. Data is
recognised only by its marks: JSON that parses, a code fence around JSON, triple quotes, or a tag that names data
(`<document>`). Unmarked prose may be part of the instruction, and tags with other names (`<rules>`) often are.
"""

import json
import re
from collections.abc import Iterator

from policies.compression.json_text import looks_like_json
from policies.compression.policy import Aggressiveness
from policies.compression.structural import compress_structure

_CHARACTERS_MIN = 200  # less is an example, or saves next to nothing
_JSON_START = re.compile(r"^[ \t]*(?=[\[{])", re.MULTILINE)
_REST_OF_LINE = re.compile(r"[ \t\r]*(?:\n|\Z)")
_JSON_ATTEMPTS_MAX = 32  # a text that only looks like JSON must not cost a parse per line
_DATA_TAGS = (
    r"articles?|attachments?|contents?|contexts?|csv|data|datasets?|documents?|emails?|inputs?|json|logs?|messages?|pages?|"
    r"passages?|records?|reports?|results?|search_results?|tables?|texts?|transcripts?"
)
# Lines that open or close a block: a fence, triple quotes, a tag that names data.
_BLOCK_MARK = re.compile(
    rf'(?m)^(?:(?P<fence>```|~~~)[^\n]*|(?P<quotes>""")[ \t]*|<(?P<close>/?)(?P<tag>{_DATA_TAGS})(?: [^<>\n]*)?>[ \t]*)$'
)
_DECODER = json.JSONDecoder()
Span = tuple[int, int]


def data_spans(text: str) -> list[Span]:
    """The positions of data in the text, in order and without overlap. Linear time."""
    if len(text) < _CHARACTERS_MIN:
        return []
    spans: list[Span] = []
    position = attempts = 0
    for opening, start, end, end_of_block in _marked_blocks(text):
        json_spans = _plain_json(text, position, opening, _JSON_ATTEMPTS_MAX - attempts)
        attempts += len(json_spans)
        spans += [span for span in json_spans if span[0] < span[1]]
        if start < end:
            spans.append((start, end))
        position = end_of_block
    return [(start, end) for start, end in spans if end - start >= _CHARACTERS_MIN]


def without_data(text: str) -> str:
    """The text around the data; the whole text if there is none around it."""
    parts, position = [], 0
    for start, end in data_spans(text):
        parts.append(text[position:start])
        position = end
    around = "".join([*parts, text[position:]])
    return around if around.strip() else text


def with_data_minified(text: str) -> str:
    """The text with its data in fewer characters: JSON minified, trailing blanks removed, repetition counted.

    No more than that, whatever the policy: the question is about this data, and all of it is needed.
    """
    parts, position = [], 0
    for start, end in data_spans(text):
        parts += [text[position:start], compress_structure(text[start:end], Aggressiveness.LOW)]
        position = end
    return "".join([*parts, text[position:]])


def _marked_blocks(text: str) -> Iterator[tuple[int, int, int, int]]:
    """For each marked block: where it opens, the bounds of its data (empty for a fence around anything but JSON), and where it ends.

    The last block is the end of the text. A mark that is never closed extends to the end, which is then left alone.
    """
    opening: re.Match[str] | None = None
    for mark in _BLOCK_MARK.finditer(text):
        if opening is None:
            opening = None if mark["close"] else mark
        elif _closes(mark, opening):
            start, end = opening.end() + 1, mark.start() - 1
            if opening["fence"] and not looks_like_json(text[start:end]):
                end = start
            yield opening.start(), start, end, mark.end()
            opening = None
    unmatched_start = len(text) if opening is None else opening.start()
    yield unmatched_start, unmatched_start, unmatched_start, unmatched_start


def _closes(mark: re.Match[str], opening: re.Match[str]) -> bool:
    if opening["fence"]:
        return mark["fence"] == opening["fence"] and not mark[0].strip().strip(opening["fence"][0])
    if opening["quotes"]:
        return mark["quotes"] is not None
    return bool(mark["close"]) and mark["tag"] == opening["tag"]


def _plain_json(text: str, position: int, stop: int, attempts_max: int) -> list[Span]:
    """JSON that starts at the beginning of a line and ends at the end of one; an empty span for each failed try."""
    spans: list[Span] = []
    while len(spans) < attempts_max:
        line = _JSON_START.search(text, position, stop)
        if line is None:
            break
        start = line.end()
        try:
            end = _DECODER.raw_decode(text, start)[1]
        except (ValueError, RecursionError):
            end = start
        is_complete = end <= stop and _REST_OF_LINE.match(text, end) and looks_like_json(text[start:end])
        spans.append((start, end if is_complete else start))
        position = max(end, start + 1)
    return spans
