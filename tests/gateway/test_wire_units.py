"""Protocols that are not priced by generated text: embeddings, moderations, reranking, images, speech."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.errors import BadRequest
from gateway.wire.protocols import COUNT_TOKENS_PATHS, PROTOCOLS
from gateway.wire.speech import SpeechProtocol
from policies.pricing import Usage
from tests.gateway.wav_files import wav
from tests.gateway.wire_streams import Words, protocol_of

BODIES: dict[str, dict[str, Any]] = {
    "embeddings": {"model": "m", "input": "a text"},
    "moderations": {"model": "m", "input": "a text"},
    "rerank": {"model": "m", "query": "which", "documents": ["a", "b"]},
    "images/generations": {"model": "m", "prompt": "a tram"},
    "audio/speech": {"model": "m", "input": "Mind the gap.", "voice": "alloy"},
}


def parse(endpoint: str, **fields: Any) -> Any:
    return protocol_of(endpoint).parse(json.dumps({**BODIES[endpoint], **fields}).encode())


def test_every_endpoint_exists_with_and_without_v1() -> None:
    names = {path: protocol.name for path, protocol in PROTOCOLS.items()}
    assert {path: name for path, name in names.items() if path.startswith("/v1/")} == {
        "/v1/chat/completions": "chat",
        "/v1/completions": "completions",
        "/v1/responses": "responses",
        "/v1/messages": "messages",
        "/v1/embeddings": "embeddings",
        "/v1/moderations": "moderations",
        "/v1/rerank": "rerank",
        "/v1/images/generations": "images",
        "/v1/audio/speech": "speech",
        "/v1/audio/transcriptions": "transcriptions",
    }
    assert all(PROTOCOLS[path.removeprefix("/v1")] is protocol for path, protocol in PROTOCOLS.items())
    assert not COUNT_TOKENS_PATHS & PROTOCOLS.keys()


@pytest.mark.parametrize(
    ("endpoint", "fields", "param"),
    [
        ("embeddings", {"model": None}, "model"),
        ("embeddings", {"input": None}, "input"),
        ("embeddings", {"input": ""}, "input"),
        ("embeddings", {"input": []}, "input"),
        ("embeddings", {"input": 7}, "input"),
        ("embeddings", {"input": [True]}, "input"),
        ("embeddings", {"input": ["a", None]}, "input"),
        ("embeddings", {"input": ["a"] * 100_001}, "input"),
        ("embeddings", {"stream": True}, "stream"),
        ("embeddings", {"api_key": "k"}, "api_key"),
        ("moderations", {"model": ""}, "model"),
        ("moderations", {"input": None}, "input"),
        ("moderations", {"input": {}}, "input"),
        ("rerank", {"query": None}, "query"),
        ("rerank", {"query": ["a"]}, "query"),
        ("rerank", {"documents": None}, "documents"),
        ("rerank", {"documents": "a"}, "documents"),
        ("rerank", {"documents": []}, "documents"),
        ("rerank", {"documents": [7]}, "documents"),
        ("rerank", {"documents": ["a"] * 10_001}, "documents"),
        ("rerank", {"top_n": 0}, "top_n"),
        ("images/generations", {"prompt": None}, "prompt"),
        ("images/generations", {"prompt": 7}, "prompt"),
        ("images/generations", {"n": 0}, "n"),
        ("images/generations", {"n": 11}, "n"),
        ("images/generations", {"n": True}, "n"),
        ("images/generations", {"stream": True}, "stream"),
        ("audio/speech", {"input": ""}, "input"),
        ("audio/speech", {"input": ["a"]}, "input"),
        ("audio/speech", {"voice": None}, "voice"),
        ("audio/speech", {"voice": 7}, "voice"),
        ("audio/speech", {"speed": 0}, "speed"),
        ("audio/speech", {"speed": 4.1}, "speed"),
        ("audio/speech", {"speed": "fast"}, "speed"),
        ("audio/speech", {"speed": True}, "speed"),
        ("audio/speech", {"stream_format": "sse"}, "stream_format"),
    ],
)
def test_invalid_request_names_its_field(endpoint: str, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parse(endpoint, **fields)
    assert (refused.value.status, refused.value.param) == (400, param)
    assert json.loads(protocol_of(endpoint).error_body(refused.value))["error"]["param"] == param


@pytest.mark.parametrize("endpoint", BODIES)
def test_request_is_forwarded_unchanged(endpoint: str) -> None:
    fields = {"brand_new": {"a": [1]}, "metadata": {"team": "x"}}
    request = parse(endpoint, **fields)
    assert (request.has_output, request.stream, request.metadata) == (False, False, {"team": "x"})
    assert protocol_of(endpoint).upstream_body(request, 5, stream=False) == {**BODIES[endpoint], **fields}


@pytest.mark.parametrize("endpoint", BODIES)
def test_unstreamed_protocols_have_no_relay_and_no_output_text(endpoint: str) -> None:
    protocol = protocol_of(endpoint)
    assert not protocol.streams
    assert protocol.output_text({"data": [{"text": "x"}]}) == ""
    with pytest.raises(NotImplementedError):
        protocol.relay(parse(endpoint), Words())
    with pytest.raises(NotImplementedError):
        protocol.assemble(b"")


@pytest.mark.parametrize(
    "embedding_input", ["a", ["a", "b"], [1, 2, 3], [[1, 2], [3]], [{"type": "image_url", "image_url": {"url": "x"}}]]
)
def test_every_form_of_embedding_input_is_accepted(embedding_input: Any) -> None:
    assert parse("embeddings", input=embedding_input).body["input"] == embedding_input


def test_moderation_without_a_model_uses_the_apis_default() -> None:
    assert parse("moderations", model=None).model == "omni-moderation-latest"


@pytest.mark.parametrize(
    ("endpoint", "answer", "expected"),
    [
        ("embeddings", {"usage": {"prompt_tokens": 8, "total_tokens": 8}}, Usage(8)),
        ("embeddings", {"usage": {"total_tokens": 8}}, Usage(8)),
        ("embeddings", {"usage": {"prompt_tokens": 0, "total_tokens": 0}}, None),
        ("embeddings", {"usage": {"prompt_tokens": -8}}, None),
        ("embeddings", {"usage": {"prompt_tokens": 10**12}}, None),
        ("embeddings", {"usage": None}, None),
        ("embeddings", {}, None),
        ("moderations", {"results": []}, None),
        ("rerank", {"meta": {"billed_units": {"search_units": 2}}}, Usage(queries=2)),
        ("rerank", {"meta": {"billed_units": {}, "tokens": {"input_tokens": 30}}}, Usage(30)),
        ("rerank", {"meta": {"billed_units": {"total_tokens": 31}}}, Usage(31)),
        ("rerank", {"usage": {"total_tokens": 32}}, Usage(32)),
        ("rerank", {"meta": None}, None),
        ("rerank", {"meta": {"billed_units": {"search_units": -1}}}, None),
        ("images/generations", {"data": [{"url": "x"}, {"url": "y"}]}, Usage(images=2)),
        (
            "images/generations",
            {"data": [{}], "usage": {"input_tokens": 9, "output_tokens": 272}},
            Usage(9, 272, images=1),
        ),
        ("images/generations", {"data": [{}], "usage": {"input_tokens": -9, "output_tokens": None}}, Usage(images=1)),
        ("images/generations", {"data": []}, None),
        ("images/generations", {"data": None}, None),
    ],
)
def test_usage_is_read_from_the_answer(endpoint: str, answer: dict[str, Any], expected: Usage | None) -> None:
    assert protocol_of(endpoint).usage(answer) == expected


@pytest.mark.parametrize(
    ("fields", "queries", "media_tokens"),
    [
        ({}, 1, 3),  # the query once more, for the second document
        ({"documents": ["a"] * 100}, 1, 297),
        ({"documents": ["a"] * 101}, 2, 300),
        ({"documents": ["x" * 2000] * 50}, 2, 147),  # each is cut into three pieces of up to 500 tokens, query included
        ({"documents": [{"text": "a"}, {"title": "b"}]}, 1, 3),
        ({"query": "x" * 4000, "documents": ["a"]}, 1, 0),
    ],
)
def test_rerank_queries_and_tokens_are_counted_in_advance(
    fields: dict[str, Any], queries: int, media_tokens: int
) -> None:
    request = parse("rerank", **fields)
    assert (request.queries, request.media_tokens) == (queries, media_tokens)
    assert request.units() == Usage(queries=queries)


@pytest.mark.parametrize(
    ("fields", "images", "media_tokens"),
    [
        ({}, 1, 6240),
        ({"quality": "low", "size": "1024x1024"}, 1, 272),
        ({"quality": "medium", "size": "1536x1024", "n": 3}, 3, 3 * 1568),
        ({"quality": "high", "size": "auto"}, 1, 6240),
        ({"quality": "hd", "size": "1024x1024"}, 1, 4160),
        ({"quality": ["low"], "size": {"a": 1}}, 1, 6240),
    ],
)
def test_images_and_their_tokens_are_counted_in_advance(fields: dict[str, Any], images: int, media_tokens: int) -> None:
    request = parse("images/generations", **fields)
    assert (request.images, request.media_tokens) == (images, media_tokens)
    assert request.units() == Usage(images=images)


@pytest.mark.parametrize(
    ("fields", "characters", "audio_ms"),
    [
        ({"input": "a" * 100}, 100, 11_001),
        ({"input": "電車" * 50}, 100, 34_001),
        ({"input": "a" * 100, "speed": 0.5}, 100, 22_001),
        ({"input": "a" * 100, "speed": 4}, 100, 11_001),
    ],
)
def test_speech_is_counted_in_characters_and_its_duration_bounded(
    fields: dict[str, Any], characters: int, audio_ms: int
) -> None:
    request = parse("audio/speech", **fields)
    assert (request.characters, request.audio_ms) == (characters, audio_ms)
    assert request.media_tokens == -(-audio_ms * 21 // 1000)
    assert request.units() == Usage(characters=characters, audio_ms=audio_ms)


@pytest.mark.parametrize(
    ("fields", "sound", "audio_ms"),
    [
        ({"response_format": "wav"}, wav(1.5), 1500),
        ({"response_format": "pcm"}, b"\x00" * 48_000, 1000),
        ({"response_format": "opus"}, b"OggS" + b"\x00" * 500, 2301),  # not measured: the bound from the request
        ({}, b"\xff\xfb damaged", 2301),
    ],
)
def test_duration_of_speech_is_measured_or_bounded(fields: dict[str, Any], sound: bytes, audio_ms: int) -> None:
    request = parse("audio/speech", **fields)
    assert SpeechProtocol().usage_of_bytes(request, sound) == Usage(characters=13, audio_ms=audio_ms)


def test_empty_speech_has_no_usage() -> None:
    assert SpeechProtocol().is_binary
    assert SpeechProtocol().usage_of_bytes(parse("audio/speech"), b"") is None
