"""OpenAI's transcriptions: audio in a form, text out; priced per second, or by the tokens of audio and text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import orjson

from gateway.errors import BadRequest
from gateway.upstream.port import ProtocolName
from gateway.wire.audio_duration import duration_ms_at_most
from gateway.wire.body import DENIED_KEYS, forbidden, text
from gateway.wire.buffered import BufferedProtocol
from gateway.wire.choices import details_of
from gateway.wire.form import Part, parts_of, text_of
from gateway.wire.protocol import Request, token_count
from policies.pricing import Usage

FILE_BYTES_MAX: Final = 25 * 1024 * 1024  # the API's own limit
_SECONDS_PLAUSIBLE_MAX: Final = 7 * 24 * 3600
_TOKENS_PER_SECOND: Final = 20  # 10 of audio, and no speech has more than 10 tokens of text per second
_LISTS: Final = frozenset({"timestamp_granularities", "include"})


class TranscriptionsProtocol(BufferedProtocol):
    name: ProtocolName = "transcriptions"
    counted_as: None = None
    answer_field: Final = "text"
    is_binary = True  # subtitles and plain text are not JSON

    def parse(self, raw: bytes) -> Request:
        body = _body_of(parts_of(raw))
        model = text(body, "model")
        if "file" not in body:
            raise BadRequest.field("file", "is missing", "missing_field")
        if str(body.pop("stream", "false")).lower() not in ("false", "0"):
            raise BadRequest.field("stream", "is not possible here: this answer comes whole")
        audio_ms = duration_ms_at_most(body["file"][1])
        return Request(
            body=body,
            model=model,
            has_output=False,
            audio_ms=audio_ms,
            media_tokens=-(-audio_ms * _TOKENS_PER_SECOND // 1000),
        )

    def usage_of_bytes(self, request: Request, answer: bytes) -> Usage | None:
        """The usage that a JSON answer reports. Subtitles and plain text report none, so the audio's duration is booked."""
        try:
            value = orjson.loads(answer)
        except orjson.JSONDecodeError:
            return None
        return self.usage(value) if isinstance(value, dict) else None

    def usage(self, answer: Mapping[str, Any]) -> Usage | None:
        """Tokens or seconds, never both: models with prices for both bill only one of them."""
        usage = details_of(answer, "usage")
        prompt, output = token_count(usage.get("input_tokens")), token_count(usage.get("output_tokens"))
        if prompt is not None and output is not None and prompt + output:
            audio_tokens = token_count(details_of(usage, "input_token_details").get("audio_tokens")) or 0
            return Usage(input_tokens=prompt, output_tokens=output, audio_input_tokens=min(audio_tokens, prompt))
        seconds = usage.get("seconds", answer.get("duration"))
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            return None
        return Usage(audio_ms=math.ceil(seconds * 1000)) if 0 < seconds <= _SECONDS_PLAUSIBLE_MAX else None


def _body_of(parts: list[Part]) -> dict[str, Any]:
    """The form as the upstream lanes expect it: `file` as (name, content, content type), and a list if a name ends with []."""
    body: dict[str, Any] = {}
    for part in parts:
        name = part.name.removesuffix("[]")
        if name in DENIED_KEYS:
            raise forbidden(name)
        if name == "file":
            _add(body, name, _file(part))
        elif part.name.endswith("[]") or name in _LISTS:
            entries = body.setdefault(name, [])
            if not isinstance(entries, list):
                raise BadRequest.field(name, "stands in the form as a text and as a list", "duplicate_key")
            entries.append(text_of(part))
        else:
            _add(body, name, text_of(part))
    return body


def _add(body: dict[str, Any], name: str, value: Any) -> None:
    if name in body:
        raise BadRequest.field(name, "stands in the form twice", "duplicate_key")
    body[name] = value


def _file(part: Part) -> tuple[str, bytes, str]:
    if not part.content:
        raise BadRequest.field("file", "is empty")
    if len(part.content) > FILE_BYTES_MAX:
        raise BadRequest.too_large(FILE_BYTES_MAX)
    return part.file_name or "sound", part.content, part.content_type
