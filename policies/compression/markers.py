"""Markers in place of what was left out: readable for the model, and recognised when the text comes again.

    [… 37 of 120 lines left out · 3fa9 …]          the first gap of a shortened text: its receipt
    […]                                            its other gaps
    [… 12 lines as in message 3 (read_log) · 9f3e …]   a back-reference to an earlier text

The four digits bind a marker to content: a receipt has the digest of the text that it is in, a reference that of the first
line of its block. So a text is not shortened twice, and a text that only pretends to have our marker is treated like any
other. Markers contain no quotes or backslashes, so that all of them can be inside a JSON string.
"""

import re
from hashlib import blake2s

GAP = "[…]"
_UNSIGNED_END = "· 0000 …]"
_RECEIPT = re.compile(r"\[… [^\[\]\n]{1,80} · ([0-9a-f]{4}) …\]")
_REFERENCE = re.compile(r"\[… (\d+) lines? as in message (\d+)[^\[\]\n]{0,50} · ([0-9a-f]{4}) …\]")
_ANY_MARKER = re.compile(r"\[…(?: [^\[\]\n]{1,80} …)?\]")
_RECEIPTS_MAX = 16  # a text full of forged receipts must not cost a digest for each


def digest(text: str) -> str:
    return blake2s(text.encode("utf-8", "surrogatepass"), digest_size=2).hexdigest()


def unsigned_receipt(description: str) -> str:
    """A receipt to be signed by `sign_receipt` once the text around it is complete."""
    return f"[… {description} {_UNSIGNED_END}"


def sign_receipt(text: str) -> str:
    """The text with its one unsigned receipt signed."""
    return text.replace(_UNSIGNED_END, f"· {digest(text)} …]", 1)


def is_receipted(text: str) -> bool:
    """Whether this text was shortened by us and has not been changed since."""
    if " …]" not in text:
        return False
    for tried, receipt in enumerate(_RECEIPT.finditer(text)):
        if tried == _RECEIPTS_MAX:
            return False
        start, end = receipt.span(1)
        if receipt[1] == digest(text[:start] + "0000" + text[end:]):
            return True
    return False


def reference(lines: int, label: str, first_line: str) -> str:
    plural = "line" if lines == 1 else "lines"
    return f"[… {lines} {plural} as in {label} · {digest(first_line)} …]"


def references_in(text: str) -> list[tuple[int, int, str]]:
    """(number of lines, message number from 1, digest of the first line) of each back-reference."""
    if " as in message " not in text:
        return []
    return [(int(match[1]), int(match[2]), match[3]) for match in _REFERENCE.finditer(text)]


def is_marker(line: str) -> bool:
    return line.startswith("[…") and line.endswith("…]")


def without_markers(text: str) -> str:
    return _ANY_MARKER.sub(" ", text) if "[…" in text else text
