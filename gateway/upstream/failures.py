"""What a provider's error says about retrying: how long to wait, and whether the prompt was too long for the model."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

import orjson

from gateway.upstream.error_bodies import json_message

# How OpenAI, Anthropic, vLLM, Mistral, Gemini, Bedrock, Groq and Cohere say that a prompt exceeds the context window.
_TOO_LONG: Final = (
    "maximum context length",
    "context_length_exceeded",
    "context length exceeded",
    "context window",
    "prompt is too long",
    "input is too long",
    "input length and `max_tokens` exceed",
    "exceeds the maximum number of tokens",
    "input token count",
    "too many tokens",
    "reduce the length of the messages",
)


def retry_after_s(headers: Mapping[str, str], now_s: float) -> float | None:
    """How many seconds a provider asks to wait: `retry-after-ms`, or `retry-after` as seconds or as a date.

    `now_s` is in seconds since the epoch. None if there is no such header, or its value is invalid.
    """
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        value = headers.get("retry-after")
        if value is None:
            return None
        try:
            return max(0.0, float(value))
        except ValueError:
            retry_at = parsedate_to_datetime(value)
            retry_at = retry_at if retry_at.tzinfo else retry_at.replace(tzinfo=UTC)
            return max(0.0, (retry_at - datetime.fromtimestamp(now_s, UTC)).total_seconds())
    except (ValueError, OverflowError):
        return None


def is_context_window(status: int, body: bytes) -> bool:
    """Whether an error answer says that the prompt does not fit into the context window."""
    if status not in (400, 413, 422):
        return False
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    error = value.get("error") if isinstance(value, dict) else None
    if isinstance(error, dict) and error.get("code") == "context_length_exceeded":
        return True
    message = (json_message(value) or "").lower()
    return any(phrase in message for phrase in _TOO_LONG)
