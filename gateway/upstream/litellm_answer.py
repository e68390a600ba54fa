"""Turns LiteLLM's objects into bytes of the client's protocol: buffered answers, and streams of server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, Final

import orjson

from gateway.upstream.answer_headers import answer_headers
from gateway.upstream.error_bodies import json_message
from gateway.upstream.litellm_connections import OpenResponses
from gateway.upstream.litellm_errors import CUT_STREAM_MESSAGE, cleaned_message, failure_of
from gateway.upstream.port import ProtocolName, UpstreamBroken, UpstreamTimeout
from gateway.wire import lenient_json, sse

_PROVIDER_PREFIX: Final = "llm_provider-"
_ENDS_WITH_DONE: Final = frozenset({"chat", "completions"})
_ERROR_EVENT: Final = b"event: error"
# An error event that contains one of these comes from LiteLLM, not from the provider.
_OWN_ERRORS: Final = (b"litellm.", CUT_STREAM_MESSAGE.encode())
_CLOSE_TIMEOUT_S: Final = 2.0


def headers_of(answer: Any) -> dict[str, str]:
    """The provider's headers that reach the client. LiteLLM keeps them in a private attribute."""
    hidden = getattr(answer, "_hidden_params", None)
    provider_headers = hidden.get("additional_headers") if isinstance(hidden, Mapping) else None
    if not isinstance(provider_headers, Mapping):
        return {}
    raw = {str(name).removeprefix(_PROVIDER_PREFIX): str(value) for name, value in provider_headers.items()}
    forwarded = answer_headers((name.encode(), value.encode("latin-1", "replace")) for name, value in raw.items())
    forwarded.pop("content-type", None)  # it describes the provider's protocol, not the client's
    return forwarded


def body_of(answer: Any) -> tuple[bytes, str]:
    """A buffered answer and its content type."""
    content = getattr(answer, "content", None)
    if isinstance(content, bytes):
        response = getattr(answer, "response", None)
        content_type = response.headers.get("content-type") if response is not None else None
        return content, content_type or "application/octet-stream"
    return orjson.dumps(_without_empty_fields(_json_value(answer))), "application/json"


def _json_value(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    if dump is None:
        return value
    dumped = dump(mode="json", warnings=False)
    for holder in (dumped, dumped.get("response")):
        usage = holder.get("usage") if isinstance(holder, dict) else None
        if isinstance(usage, dict) and usage.get("cost", 0) is None:
            del usage["cost"]  # LiteLLM's own field, which only some providers fill
    return dumped


def _without_empty_fields(value: Any) -> Any:
    """Remove LiteLLM's own fields from a chat answer if they are empty, and the nulls that OpenAI leaves out."""
    choices = value.get("choices") if isinstance(value, dict) else None
    for choice in choices if isinstance(choices, list) else ():
        message = choice.get("message")
        for item in (choice, message) if isinstance(message, dict) else (choice,):
            for name in ("provider_specific_fields", "tool_calls", "function_call"):
                if name in item and _is_empty_value(item[name]):
                    del item[name]
    return value


def _is_empty_value(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and all(item is None for item in value.values()))


class LiteLLMStream:
    """The events of a stream, with an idle timeout for each and a total deadline. Raises `UpstreamError`."""

    def __init__(
        self,
        source: Any,
        protocol: ProtocolName,
        *,
        open_responses: OpenResponses,
        idle_s: float,
        deadline_s: float,
        secrets: Iterable[str],
    ) -> None:
        """`open_responses` holds the HTTP responses behind the stream. `deadline_s` is on the loop's clock."""
        self._source = source
        self._open_responses = open_responses
        self._events: AsyncIterator[Any] = source.__aiter__()
        self._protocol = protocol
        self._idle_s = idle_s
        self._deadline_s = deadline_s
        self._secrets = tuple(secrets)
        self._ended = False
        self._closed = False

    def __aiter__(self) -> LiteLLMStream:
        return self

    async def __anext__(self) -> bytes:
        if self._ended or self._closed:
            raise StopAsyncIteration
        try:
            data = event_bytes(self._protocol, await self._next())
        except StopAsyncIteration:
            self._ended = True
            if self._protocol in _ENDS_WITH_DONE:
                return b"data: [DONE]\n\n"
            raise
        except TimeoutError as error:
            await self.close()
            raise UpstreamTimeout("The provider fell silent in its answer.", bytes_received=True) from error
        except Exception as error:
            # LiteLLM raises whatever its parsers raise. All of it means that the answer broke off.
            await self.close()
            raise failure_of(error, self._secrets, bytes_received=True) from error
        if data.startswith(_ERROR_EVENT) and any(mark in data for mark in _OWN_ERRORS):
            # A translated stream broke off: LiteLLM puts the text of its exception into an event of its own.
            await self.close()
            raise UpstreamBroken(f"The provider broke off: {_error_message(data, self._secrets)}", bytes_received=True)
        return data

    async def _next(self) -> Any:
        now_s = asyncio.get_running_loop().time()
        async with asyncio.timeout_at(min(now_s + self._idle_s, self._deadline_s)):
            return await self._events.__anext__()

    async def close(self) -> None:
        """Close the provider's connection. Idempotent."""
        if self._closed:
            return
        self._closed = True
        await self._open_responses.close()
        aclose = getattr(self._source, "aclose", None)
        if aclose is not None:
            # The connection is already closed, so whatever this still raises does not matter.
            with contextlib.suppress(Exception):
                await asyncio.wait_for(aclose(), _CLOSE_TIMEOUT_S)


def _error_message(event: bytes, secrets: Iterable[str]) -> str:
    try:
        value = orjson.loads(event.partition(b"data: ")[2])
    except orjson.JSONDecodeError:
        return "its last event cannot be read."
    return cleaned_message(json_message(value.get("error")) or "", secrets)


def event_bytes(protocol: ProtocolName, event: Any) -> bytes:
    """One event of the client's protocol, with its blank line."""
    if isinstance(event, bytes):
        return event
    if isinstance(event, str):
        return event.encode()
    if protocol in _ENDS_WITH_DONE:
        return sse.event(lenient_json.dumps(_chunk(event)))
    value = _json_value(event)
    name = str(value.get("type", "message")) if isinstance(value, Mapping) else "message"
    return sse.event(lenient_json.dumps(value), name)


def _chunk(event: Any) -> dict[str, Any]:
    chunk: dict[str, Any] = event.model_dump(mode="json", exclude_none=True, exclude_unset=True, warnings=False)
    usage = chunk.get("usage")
    if usage and not usage.get("total_tokens"):
        del chunk["usage"]  # LiteLLM puts zeros on every chunk of a completion, which is not usage
    # OpenAI's usage chunk has no choices. LiteLLM's has an empty one, which clients would show as a delta.
    elif usage and all(_is_empty_choice(choice) for choice in chunk.get("choices", [])):
        chunk["choices"] = []
    return chunk


def _is_empty_choice(choice: Mapping[str, Any]) -> bool:
    return not choice.get("delta") and not choice.get("text") and not choice.get("finish_reason")
