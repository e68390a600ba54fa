"""What a provider's error answer says about trying again: its wish for a pause, and whether the prompt was too long."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

import orjson

from gateway.upstream.error_bodies import json_message

# Sentences of OpenAI, Anthropic, vLLM, Mistral, Gemini, Bedrock, Groq and Cohere about a prompt beyond the window.
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
    """Seconds that a provider asks to wait: `retry-after-ms`, or `retry-after` as seconds or as a date.

    `now_s` is in seconds since the epoch. None when it does not say, or says something that is no time.
    """
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        said = headers.get("retry-after")
        if said is None:
            return None
        try:
            return max(0.0, float(said))
        except ValueError:
            then = parsedate_to_datetime(said)
            then = then if then.tzinfo else then.replace(tzinfo=UTC)
            return max(0.0, (then - datetime.fromtimestamp(now_s, UTC)).total_seconds())
    except (ValueError, OverflowError):
        return None


def is_context_window(status: int, body: bytes) -> bool:
    """Whether an error answer says that the prompt does not fit the model's window."""
    if status not in (400, 413, 422):
        return False
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    error = value.get("error") if isinstance(value, dict) else None
    if isinstance(error, dict) and error.get("code") == "context_length_exceeded":
        return True
    said = (json_message(value) or "").lower()
    return any(phrase in said for phrase in _TOO_LONG)
