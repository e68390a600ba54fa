"""Corrects what LiteLLM does at both ends of a stream: it sends some requests only when the answer is read, takes a stream that
broke off for a complete one, and does not always recognise the end of one."""

from __future__ import annotations

import importlib
from typing import Any, Final

from gateway.upstream.litellm_errors import CUT_STREAM_MESSAGE

_GEMINI: Final = "litellm.llms.vertex_ai.gemini.vertex_and_google_ai_studio_gemini"
# Their request is sent when the first event is read. By then the client has its status, so that an error of the provider could
# neither be retried nor reach the client with its own status.
_LATE_SENDERS: Final = (
    (_GEMINI, "VertexLLM", "async_streaming"),
    ("litellm.llms.codestral.completion.handler", "CodestralTextCompletion", "async_streaming"),
    ("litellm.llms.predibase.chat.handler", "PredibaseChatCompletion", "async_streaming"),
)


def correct() -> None:
    """Call once per process, after LiteLLM is imported."""
    wrapper = importlib.import_module("litellm.litellm_core_utils.streaming_handler").CustomStreamWrapper
    if getattr(wrapper.finish_reason_handler, "is_corrected", False):
        return
    _forbid_invented_ends(wrapper)
    _keep_reasons(wrapper)
    _leave_reasons_open(importlib.import_module(_GEMINI).VertexGeminiConfig)
    _read_ends(importlib.import_module("litellm.llms.base_llm.base_model_iterator").BaseModelResponseIterator)
    _read_cohere(importlib.import_module("litellm.llms.cohere.common_utils").CohereV2ModelResponseIterator)
    for module, name, method in _LATE_SENDERS:
        _send_at_once(getattr(importlib.import_module(module), name), method)


def _forbid_invented_ends(wrapper: Any) -> None:
    """A stream that ends without a finish reason was cut off. LiteLLM would report "stop", as if the answer were complete."""
    last_chunk = wrapper.finish_reason_handler

    def checked_last_chunk(self: Any) -> Any:
        if self.received_finish_reason is None and self.intermittent_finish_reason is None:
            raise EOFError(CUT_STREAM_MESSAGE)
        return last_chunk(self)

    checked_last_chunk.is_corrected = True  # type: ignore[attr-defined]
    wrapper.finish_reason_handler = checked_last_chunk


def _keep_reasons(wrapper: Any) -> None:
    """Gemini may send its usage after the finish reason, in a chunk of its own, in which LiteLLM forgets the reason."""
    read_chunk = wrapper.handle_openai_chat_completion_chunk

    def read_and_keep(self: Any, chunk: Any) -> Any:
        parsed = read_chunk(self, chunk)
        if parsed is not None and parsed.get("finish_reason") is None:
            parsed["finish_reason"] = self.intermittent_finish_reason
        return parsed

    wrapper.handle_openai_chat_completion_chunk = read_and_keep


def _leave_reasons_open(gemini: Any) -> None:
    """LiteLLM gives every chunk of Gemini's without a finish reason the reason "stop", so that none of its streams breaks off."""
    make = gemini._create_streaming_choice

    def make_without_reason(*, candidate: Any, **fields: Any) -> Any:
        choice = make(candidate=candidate, **fields)
        if not candidate.get("finishReason"):
            choice.finish_reason = None
        return choice

    gemini._create_streaming_choice = staticmethod(make_without_reason)


def _read_ends(iterator: Any) -> None:
    """LiteLLM takes any line that contains `[DONE]` for the end of the stream, even a text that mentions it, and a stream of
    nothing else for a complete answer."""
    read = iterator._handle_string_chunk

    def read_line(self: Any, str_line: str) -> Any:
        event = iterator._string_to_dict_parser(str_line)
        if event:
            self.has_events = True
            return self.chunk_parser(chunk=event)
        return read(self, str_line if getattr(self, "has_events", False) else "")

    iterator._handle_string_chunk = read_line


def _read_cohere(iterator: Any) -> None:
    """Cohere names its events in `type`; for some LiteLLM looks in `event` and `data`, and so misses the finish reason and the usage.
    It also reads bare lines of JSON only, where Cohere may send server-sent events."""
    parse, convert = iterator.chunk_parser, iterator.convert_str_chunk_to_generic_chunk

    def parse_named(self: Any, chunk: dict[str, Any]) -> Any:
        with_event = chunk if "event" in chunk else {**chunk, "event": chunk.get("type", ""), "data": chunk}
        return parse(self, with_event)

    def convert_line(self: Any, chunk: Any) -> Any:
        line = chunk.strip() if isinstance(chunk, str) else chunk
        if isinstance(line, str) and not line.startswith("{"):
            field, _, value = line.partition(":")
            if field != "data":
                return parse(self, {})  # an event's name, a comment or a blank line
            line = value
        return convert(self, line)

    iterator.chunk_parser = parse_named
    iterator.convert_str_chunk_to_generic_chunk = convert_line


def _send_at_once(provider: Any, method: str) -> None:
    begin = getattr(provider, method)

    async def begin_and_send(self: Any, *arguments: Any, **fields: Any) -> Any:
        stream = await begin(self, *arguments, **fields)
        await stream.fetch_stream()
        return stream

    setattr(provider, method, begin_and_send)
