"""An answer on its way to the shelf: what of it may be given again, and which requests are the same."""

from __future__ import annotations

import hashlib
import re
from typing import Any, Final

import orjson

from gateway.answers.port import KeptAnswer
from gateway.pipeline.exchange import Answered

# The comment that ends a tagged stream tells one run's figures of one moment.
_BUDGET_NOTE: Final = re.compile(rb"^: budget [^\n]*\n\n", re.MULTILINE)
_EVENTS: Final = b"text/event-stream"


def kept_of(answered: Answered, fingerprint: bytes = b"") -> KeptAnswer | None:
    """None for an answer that failed."""
    if answered.status >= 300:
        return None
    content_type = dict(answered.headers).get(b"content-type", b"application/json")
    body = _BUDGET_NOTE.sub(b"", answered.body) if content_type.startswith(_EVENTS) else answered.body
    return KeptAnswer(fingerprint, content_type, body)


def canonical(value: Any) -> bytes:
    """The same bytes for the same request, whatever the order of its keys. Uploads stand for themselves."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS, default=_plain)


def _plain(value: Any) -> Any:
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else repr(value)
