"""OpenAI chat completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from gateway.errors import BadRequest, GatewayError
from gateway.upstream.port import ProtocolName
from gateway.wire.body import boolean, parse_object, text, whole_number
from gateway.wire.chat_assembly import assemble_answer
from gateway.wire.choices import ChoiceRelay, request_stream, usage_of, wants_usage
from gateway.wire.openai_errors import error_body
from gateway.wire.protocol import OutputCounter, Request, hosted_tools_bound, joined_texts
from policies.pricing import NO_HOSTED_TOOLS, HostedTools, Usage

MESSAGES_MAX: Final = 20_000
CHOICES_MAX: Final = 128


class ChatProtocol:
    name: ProtocolName = "chat"
    counted_as: Literal["chat"] = "chat"
    answer_field: Final = "choices"
    streams = True
    is_binary = False

    def parse(self, raw: bytes) -> Request:
        body = parse_object(raw)
        model = text(body, "model")
        check_messages(body)
        newer = whole_number(body, "max_completion_tokens", 1)
        older = whole_number(body, "max_tokens", 1)
        # Web search is billed once per answer, because no answer reports how many searches it made.
        hosted_min = HostedTools(1) if isinstance(body.get("web_search_options"), dict) else NO_HOSTED_TOOLS
        caps = [cap for cap in (newer, older) if cap is not None]
        return Request(
            body=body,
            model=model,
            stream=boolean(body, "stream"),
            choices=whole_number(body, "n", 1, CHOICES_MAX) or 1,
            output_tokens_max=min(caps) if caps else None,
            wants_usage=wants_usage(body),
            has_audio=_has_audio(raw, body),
            hosted_min=hosted_min,
            hosted_max=hosted_min
            if "tools" not in body
            else hosted_tools_bound(body["tools"], None).unitwise_max(hosted_min),
            metadata=body.get("metadata"),
        )

    def upstream_body(self, request: Request, output_tokens: int | None, stream: bool) -> dict[str, Any]:
        body = dict(request.body)
        if output_tokens is not None:
            _set_output_cap(body, output_tokens)
        elif request.output_tokens_max is not None and "max_tokens" in body and "max_completion_tokens" in body:
            _set_output_cap(body, request.output_tokens_max)  # we do not know which of the two a provider obeys
        if stream:
            request_stream(body)
        return body

    def usage(self, answer: Mapping[str, Any]) -> Usage | None:
        return usage_of(answer.get("usage"), answer.get("service_tier"))

    def output_text(self, answer: Mapping[str, Any]) -> str:
        return joined_texts(answer.get("choices"), lambda choice: message_text(choice.get("message")))

    def relay(self, request: Request, counter: OutputCounter) -> ChatRelay:
        return ChatRelay(request, counter)

    def assemble(self, pieces: bytes) -> dict[str, Any]:
        return assemble_answer(pieces)

    def error_body(self, error: GatewayError) -> bytes:
        return error_body(error)


class ChatRelay(ChoiceRelay):
    def __init__(self, request: Request, counter: OutputCounter) -> None:
        super().__init__(request, counter, request.choices)

    def _text_of_choice(self, choice: Mapping[str, Any]) -> str:
        return message_text(choice.get("delta"))

    def _blank_head(self) -> dict[str, Any]:
        model = self._request.model
        return {"id": "chatcmpl-farebox", "object": "chat.completion.chunk", "created": 0, "model": model}

    def _length_finish(self, index: int) -> dict[str, Any]:
        return {"index": index, "delta": {}, "finish_reason": "length"}


def check_messages(body: Mapping[str, Any]) -> None:
    """Raises `BadRequest` for anything but a list of 1 to 20,000 objects with a role."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest.field(
            "messages", "must be a non-empty list of messages", "missing_field" if messages is None else "invalid_value"
        )
    if len(messages) > MESSAGES_MAX:
        raise BadRequest.field("messages", f"has {len(messages)} entries, more than {MESSAGES_MAX}")
    for position, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRequest.field(f"messages[{position}]", "must be an object with a role")


def _has_audio(raw: bytes, body: Mapping[str, Any]) -> bool:
    # Inside a text the quotes would be escaped. A tool's key or value with this name is a harmless false positive.
    modalities = body.get("modalities")
    return b'"input_audio"' in raw or (isinstance(modalities, list) and "audio" in modalities)


def _set_output_cap(body: dict[str, Any], output_tokens: int) -> None:
    """Cap the fields that the client used, else the older one. The lanes know which servers need the newer one instead."""
    used = [key for key in ("max_completion_tokens", "max_tokens") if body.get(key) is not None]
    for key in used or ["max_tokens"]:
        body[key] = min(output_tokens, body.get(key) or output_tokens)


def message_text(message: Any) -> str:
    """What a model wrote in a message or a delta: its text, and everything else that is billed as output."""
    if not isinstance(message, dict):
        return ""
    content = message.get("content")
    if isinstance(content, str):
        return content + _text_beside_content(message) if len(message) > 1 else content
    return _parts_text(content) + _text_beside_content(message)


def _text_beside_content(message: Mapping[str, Any]) -> str:
    """Tool calls, refusals, reasoning, and the transcript of audio."""
    texts = [message.get(key) for key in ("refusal", "reasoning_content")]
    # Some servers send their reasoning under both names, but bill it once.
    if not message.get("reasoning_content"):
        texts.append(message.get("reasoning"))
    calls = message.get("tool_calls")
    functions = [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    for function in (*functions, message.get("function_call")):
        if isinstance(function, dict):
            texts += [function.get("name"), function.get("arguments")]
    audio = message.get("audio")
    if isinstance(audio, dict):
        texts.append(audio.get("transcript"))
    return "".join([part for part in texts if isinstance(part, str)])


def _parts_text(content: Any) -> str:
    """The text in a list of parts. Mistral's reasoning models write such lists, in which thinking is again a list of parts."""
    if not isinstance(content, list):
        return ""
    texts = []
    for part in content:
        if isinstance(part, dict):
            text_part = part.get("text")
            texts.append(text_part if isinstance(text_part, str) else _parts_text(part.get("thinking")))
    return "".join(texts)
