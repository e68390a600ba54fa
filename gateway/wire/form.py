"""A bounded parser for `multipart/form-data` in memory. The form is rebuilt for the provider, so exactly what was parsed here is
what is forwarded."""

from __future__ import annotations

from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser
from typing import Final

from gateway.errors import BadRequest

PARTS_MAX: Final = 64
_HEAD_BYTES_MAX: Final = 8 * 1024
_TEXT_BYTES_MAX: Final = 64 * 1024
_BOUNDARY_BYTES_MAX: Final = 70  # RFC 2046, 5.1.1
_PLAIN_ENCODINGS: Final = frozenset({"7bit", "8bit", "binary"})


@dataclass(frozen=True, slots=True)
class Part:
    name: str
    content: bytes
    file_name: str | None
    content_type: str


def parts_of(raw: bytes) -> list[Part]:
    """Raises `BadRequest` if `raw` is not a form, or has more than 64 parts.

    The boundary is taken from the first line of the body: a form must begin with it, and a header with another one would be
    wrong. Anything after the last boundary is ignored. An audio file of many megabytes is copied only once.
    """
    first_line, newline, _ = raw[: _BOUNDARY_BYTES_MAX + 4].partition(b"\r\n")
    if not newline or not first_line.startswith(b"--") or len(first_line) < 3:
        raise _malformed("does not begin with a boundary")
    boundary, start = b"\r\n" + first_line, len(first_line)
    parts: list[Part] = []
    while not raw.startswith(b"--", start):
        end = raw.find(boundary, start)
        if end < 0:
            raise _malformed("has no end")
        if len(parts) == PARTS_MAX:
            raise _malformed(f"has more than {PARTS_MAX} parts")
        parts.append(_parse_part(raw, start, end))
        start = end + len(boundary)
    return parts


def text_of(part: Part) -> str:
    """The part as a text field. Raises `BadRequest`."""
    if len(part.content) > _TEXT_BYTES_MAX:
        raise BadRequest.field(part.name, f"is longer than {_TEXT_BYTES_MAX} bytes")
    try:
        return part.content.decode()
    except UnicodeDecodeError:
        raise BadRequest.field(part.name, "must be text in UTF-8") from None


def _parse_part(raw: bytes, start: int, end: int) -> Part:
    """The part between two boundaries: a line break, the head, an empty line, the content."""
    head_end = raw.find(b"\r\n\r\n", start, min(end, start + _HEAD_BYTES_MAX))
    if not raw.startswith(b"\r\n", start) or head_end < 0:
        raise _malformed("has a part without a proper head")
    head = raw[start + 2 : head_end]
    # Browsers and SDKs write file names in UTF-8, as the standard for forms says (RFC 7578, 4.2).
    message: Message = HeaderParser().parsestr(head.decode("utf-8", "replace") + "\r\n\r\n")
    name = message.get_param("name", header="content-disposition")
    if message.get_content_disposition() != "form-data" or not isinstance(name, str) or not name:
        raise _malformed("has a part without a name")
    if message.get("content-transfer-encoding", "binary").lower() not in _PLAIN_ENCODINGS:
        raise _malformed("has a part in a transfer encoding")
    file_name = message.get_filename()
    if file_name is not None:
        # The client chooses its encoding, and the decoded name may hold characters that UTF-8 cannot encode.
        file_name = file_name.encode("utf-8", "replace").decode()
    return Part(name, raw[head_end + 4 : end], file_name, message.get_content_type())


def _malformed(problem: str) -> BadRequest:
    return BadRequest(f"The body is not valid multipart/form-data: it {problem}.", code="invalid_form")
