"""What of an answer may be stored and replayed, and which requests count as identical."""

from __future__ import annotations

import hashlib
import re
from typing import Any, Final

import orjson

from gateway.answers.port import StoredAnswer
from gateway.errors import BadRequest
from gateway.pipeline.exchange import SentAnswer

# The comment that ends a tagged stream holds the figures of one run at one moment, so it is not replayed.
_BUDGET_NOTE: Final = re.compile(rb"^: budget [^\n]*\n\n", re.MULTILINE)
_EVENTS: Final = b"text/event-stream"


def storable_answer(sent: SentAnswer, fingerprint: bytes = b"") -> StoredAnswer | None:
    """The answer as stored; None if it failed."""
    if sent.status >= 300:
        return None
    content_type = dict(sent.headers).get(b"content-type", b"application/json")
    body = _BUDGET_NOTE.sub(b"", sent.body) if content_type.startswith(_EVENTS) else sent.body
    return StoredAnswer(fingerprint, content_type, body)


def canonical(value: Any) -> bytes:
    """The same bytes for the same request, whatever the order of its keys. Uploads are replaced by their digest."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS, default=_json_default)
    except orjson.JSONEncodeError:
        raise BadRequest.too_deep() from None


def _json_default(value: Any) -> Any:
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else repr(value)
