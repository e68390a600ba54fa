"""Streams and answers for the wire tests: what the fake provider would send, without a provider."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable
from typing import Any

from gateway.wire.protocol import Relay, Request, WireProtocol
from gateway.wire.protocols import PROTOCOLS
from tests.fake_provider.answer import answer, count_words
from tests.fake_provider.directive import Directive
from tests.fake_provider.protocols import ENDS_WITH_DONE, FORMS

USER = [{"role": "user", "content": "say something"}]
BODIES: dict[str, dict[str, Any]] = {
    "chat/completions": {"model": "m", "messages": USER},
    "completions": {"model": "m", "prompt": "say something", "max_tokens": 1000},
    "responses": {"model": "m", "input": "say something"},
    "messages": {"model": "m", "messages": USER, "max_tokens": 1000},
}
TEXT_ENDPOINTS = tuple(BODIES)


def name_of(event: bytes) -> str | None:
    """The name of a server-sent event."""
    match = re.search(rb"^event:(.*)$", event, re.MULTILINE)
    return None if match is None else match[1].strip().decode()


class Words:
    """A token counter that counts words."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def add(self, text: str) -> None:
        self.texts.append(text)

    @property
    def tokens(self) -> int:
        return count_words("".join(self.texts))


def protocol_of(endpoint: str) -> WireProtocol:
    return PROTOCOLS[f"/v1/{endpoint}"]


def parsed(endpoint: str, **fields: Any) -> Request:
    return protocol_of(endpoint).parse(json.dumps({**BODIES.get(endpoint, {}), **fields}).encode())


def provider_stream(endpoint: str, directive: Directive, **fields: Any) -> list[bytes]:
    """The events of a provider's stream, each with its blank line."""
    body = {**BODIES[endpoint], "stream_options": {"include_usage": True}, **fields}
    completed = answer(directive, "m", body, count_words)
    events = [f"{text}\n\n".encode() for _, text in FORMS[endpoint].events(completed, directive, body)]
    return [*events, b"data: [DONE]\n\n"] if endpoint in ENDS_WITH_DONE else events


def provider_answer(endpoint: str, directive: Directive, **fields: Any) -> dict[str, Any]:
    body = {**BODIES[endpoint], "stream_options": {"include_usage": True}, **fields}
    return FORMS[endpoint].whole(answer(directive, "m", body, count_words), directive)


def relay_of(endpoint: str, **fields: Any) -> tuple[Relay, Words]:
    counter = Words()
    return protocol_of(endpoint).relay(parsed(endpoint, stream=True, **fields), counter), counter


def relayed(relay: Relay, pieces: Iterable[bytes]) -> bytes:
    return b"".join([relay.feed(piece) for piece in pieces])


def events_of(data: bytes) -> list[dict[str, Any]]:
    """The objects of a stream's events, without comments and `[DONE]`. Every event must be complete."""
    assert data == b"" or data.endswith(b"\n\n")
    lines = [line[6:] for line in data.decode().split("\n") if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def named_events(*values: dict[str, Any]) -> list[bytes]:
    """Events as Anthropic's messages and OpenAI's responses send them, named by their type."""
    return [
        b"event: " + value["type"].encode() + b"\ndata: " + json.dumps(value).encode() + b"\n\n" for value in values
    ]


def data_events(*values: dict[str, Any]) -> list[bytes]:
    return [b"data: " + json.dumps(value).encode() + b"\n\n" for value in values]


def cut_at(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data` in pieces; each cut is a position, modulo the length."""
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(edges)]
