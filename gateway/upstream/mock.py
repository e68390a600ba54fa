"""The mock lane: an entry's `mock_response` answers offline, in every text protocol, with counted usage.

It takes LiteLLM's forms: a text; the name of an exception (`litellm.RateLimitError`); `Exception:
content_filter_policy…`; `Exception: mock_streaming_error…` (529; for a stream, in the middle of it); an object (a whole chat
answer); a list of numbers (an embedding). `mock_delay_ms` or LiteLLM's `mock_delay` (seconds) delays the answer,
`mock_chunk_delay_ms` each further event of a stream.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from typing import Any, Final

import orjson

from gateway.upstream.error_bodies import error_body, error_event
from gateway.upstream.mock_reply import Count, Reply, answer_body, embeddings, events, truncate_to_tokens
from gateway.upstream.port import STREAMED, Deployment, ProtocolName, UpstreamAnswer, UpstreamCall

CountPrompt = Callable[[ProtocolName, Mapping[str, Any]], int]

_CHOICES_MAX: Final = 128
# The status and code with which a provider would report what LiteLLM's exception stands for.
_EXCEPTIONS: Final[Mapping[str, tuple[int, str | None]]] = {
    "litellm.RateLimitError": (429, "rate_limit_exceeded"),
    "litellm.ContextWindowExceededError": (400, "context_length_exceeded"),
    "litellm.ContentPolicyViolationError": (400, "content_policy_violation"),
    "litellm.BadRequestError": (400, None),
    "litellm.AuthenticationError": (401, "invalid_api_key"),
    "litellm.PermissionDeniedError": (403, None),
    "litellm.NotFoundError": (404, "model_not_found"),
    "litellm.Timeout": (408, None),
    "litellm.InternalServerError": (500, None),
    "litellm.BadGatewayError": (502, None),
    "litellm.ServiceUnavailableError": (503, None),
}
_CONTENT_REFUSAL: Final = "Exception: content_filter_policy"
_STREAM_FAILURE: Final = "Exception: mock_streaming_error"


class MockLane:
    """`count` counts the tokens of one string, `count_prompt` those of a whole request, so that usage agrees with admission."""

    def __init__(
        self,
        *,
        count: Count,
        now_s: Callable[[], float],
        new_id: Callable[[], str],
        count_prompt: CountPrompt | None = None,
    ) -> None:
        self._count = count
        self._count_prompt = count_prompt
        self._now_s = now_s
        self._new_id = new_id

    async def send(self, deployment: Deployment, call: UpstreamCall) -> UpstreamAnswer:
        """Answer as the entry says, after its delay. Protocols without a mock get a 400."""
        await asyncio.sleep(_delay_s(deployment.params))
        response = deployment.params.get("mock_response")
        failure = _failure(call.protocol, response, streaming=call.stream)
        if failure is not None:
            return _answer(deployment, *failure)
        if call.protocol == "embeddings":
            vector = response if isinstance(response, list) else None
            return _answer(deployment, 200, embeddings(call.body, deployment.model, vector, self._count))
        if call.protocol not in STREAMED:
            message = f"A mock model answers no {call.protocol}."
            return _answer(deployment, 400, error_body(call.protocol, 400, message, code="unsupported_endpoint"))
        if isinstance(response, Mapping) and call.protocol == "chat" and not call.stream:
            return _answer(deployment, 200, orjson.dumps(dict(response)))
        reply = self._reply(deployment, call, _text_of(response))
        if not call.stream:
            return _answer(deployment, 200, answer_body(call.protocol, reply))
        return self._stream(deployment, call, reply, breaks=str(response).startswith(_STREAM_FAILURE))

    async def close(self) -> None:
        """There is nothing to close."""

    def _reply(self, deployment: Deployment, call: UpstreamCall, text: str) -> Reply:
        text, finish = truncate_to_tokens(text, _output_cap(call.body), self._count)
        requested_choices = call.body.get("n", 1)
        choices = min(
            (requested_choices if type(requested_choices) is int and requested_choices > 0 else 1) * _prompts(call),
            _CHOICES_MAX,
        )
        return Reply(
            id=self._new_id(),
            model=deployment.model,
            created_s=int(self._now_s()),
            text=text,
            finish=finish,
            input_tokens=self._prompt_tokens(call),
            output_tokens=self._count(text) * choices,
            choices=choices,
        )

    def _prompt_tokens(self, call: UpstreamCall) -> int:
        if self._count_prompt is not None:
            return self._count_prompt(call.protocol, call.body)
        messages = call.body.get("messages")
        # OpenAI's rule for chat: 3 tokens per message, 1 for its role, and 3 to prime the answer.
        framing = 4 * len(messages) + 3 if isinstance(messages, list) else 0
        return framing + sum(self._count(text) for text in _texts(call.body))

    def _stream(self, deployment: Deployment, call: UpstreamCall, reply: Reply, *, breaks: bool) -> UpstreamAnswer:
        options = call.body.get("stream_options")
        include_usage = isinstance(options, Mapping) and options.get("include_usage") is True
        stream_events = events(call.protocol, reply, include_usage=include_usage)
        if breaks:
            error = error_event(call.protocol, 529, str(deployment.params["mock_response"]))
            stream_events = itertools.chain(itertools.islice(stream_events, 3), [error])
        pieces = _paced(stream_events, _milliseconds(deployment.params.get("mock_chunk_delay_ms")) / 1000)
        headers = {"content-type": "text/event-stream; charset=utf-8"}
        return UpstreamAnswer(200, headers, deployment, "mock", pieces=pieces, close=pieces.aclose)


async def _paced(stream_events: Iterator[bytes], delay_s: float) -> AsyncGenerator[bytes, None]:
    for number, event in enumerate(stream_events):
        if number and delay_s:
            await asyncio.sleep(delay_s)
        yield event


def _answer(deployment: Deployment, status: int, body: bytes) -> UpstreamAnswer:
    return UpstreamAnswer(status, {"content-type": "application/json"}, deployment, "mock", body=body)


def _failure(protocol: ProtocolName, response: Any, *, streaming: bool) -> tuple[int, bytes] | None:
    if not isinstance(response, str):
        return None
    if response in _EXCEPTIONS:
        status, code = _EXCEPTIONS[response]
        name = response.removeprefix("litellm.")
        return status, error_body(protocol, status, f"This is a mock {name}.", code=code)
    if response.startswith(_CONTENT_REFUSAL):
        return 400, error_body(protocol, 400, response, code="content_policy_violation")
    if response.startswith(_STREAM_FAILURE) and not streaming:
        return 529, error_body(protocol, 529, response)
    return None


def _text_of(response: Any) -> str:
    """The text of a mock response, which may be a whole chat answer."""
    if isinstance(response, Mapping):
        choices = response.get("choices")
        first = choices[0] if isinstance(choices, list) and choices else {}
        message = first.get("message") if isinstance(first, Mapping) else None
        content = message.get("content") if isinstance(message, Mapping) else None
        return content if isinstance(content, str) else ""
    return "" if response is None else str(response)


def _output_cap(body: Mapping[str, Any]) -> int | None:
    caps = (body.get(name) for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"))
    return min((cap for cap in caps if type(cap) is int and cap >= 0), default=None)


def _texts(value: Any) -> Iterator[str]:
    """All texts in a request that a model reads, wherever the protocol puts them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, Mapping):
        for name in ("system", "instructions", "prompt", "input", "messages", "content", "text"):
            if name in value:
                yield from _texts(value[name])


def _delay_s(params: Mapping[str, Any]) -> float:
    seconds = params.get("mock_delay")
    if isinstance(seconds, int | float) and seconds > 0:
        return float(seconds)
    return _milliseconds(params.get("mock_delay_ms")) / 1000


def _milliseconds(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and value > 0 else 0.0


def _prompts(call: UpstreamCall) -> int:
    """The number of prompts: a completions request may have a list of them, as texts or as lists of tokens."""
    prompt = call.body.get("prompt") if call.protocol == "completions" else None
    is_list = isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], int)
    return len(prompt) if is_list and prompt is not None else 1
