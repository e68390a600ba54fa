"""Malformed and hostile requests are refused before they cost anything, with an error that says what to change."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance.serving import Served, serving
from tests.farebox_process import Reply, tagged

pytestmark = pytest.mark.xdist_group("acceptance-bad-input")

BODY_BYTES_MAX = 2_000_000
HI = '"messages": [{"role": "user", "content": "hi"}]'


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    budgets = [{"scope": "run", "match": "*", "tokens": 10_000}]
    with serving(tmp_path_factory.mktemp("bad"), budgets=budgets, server={"body_bytes_max": BODY_BYTES_MAX}) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_call_failed(served: Served) -> Iterator[None]:
    yield
    assert "call_failed" not in served.gateway.log, "no request may end in an internal error"


def post(served: Served, raw: bytes | str, headers: dict[str, str] | None = None, query: str = "") -> Reply:
    data = raw.encode("utf-8", "surrogatepass") if isinstance(raw, str) else raw
    return served.gateway.request("POST", f"/v1/chat/completions{query}", data, headers or tagged("wf", "r-bad"))


NOT_JSON: list[tuple[str, bytes]] = [
    ("empty", b""),
    ("text", b"hello"),
    ("array", b"[]"),
    ("string", b'"x"'),
    ("null", b"null"),
    ("bom", b"\xef\xbb\xbf{}"),
    ("utf-16", '{"model": "fake"}'.encode("utf-16")),
    ("latin-1", b'{"model": "fake", "messages": [{"role": "user", "content": "\xe9"}]}'),
    ("nan", b'{"model": "fake", "temperature": NaN, ' + HI.encode() + b"}"),
    ("infinity", b'{"model": "fake", "temperature": Infinity, ' + HI.encode() + b"}"),
    ("exponent", b'{"model": "fake", "max_tokens": 1e999, ' + HI.encode() + b"}"),
    ("digits", b'{"model": "fake", "max_tokens": ' + b"9" * 5000 + b", " + HI.encode() + b"}"),
    ("depth", b"[" * 100_000),
    ("deep-object", b'{"model": "fake", "x": ' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}"),
    ("cut", b'{"model": "fake", "messages": ['),
    ("trailing", b'{"model": "fake", ' + HI.encode() + b"} x"),
    ("comment", b'{"model": "fake", /* no */ ' + HI.encode() + b"}"),
    ("surrogate", b'{"model": "fake", "messages": [{"role": "user", "content": "\\ud800"}]}'),
]


@pytest.mark.parametrize("raw", [raw for _, raw in NOT_JSON], ids=[name for name, _ in NOT_JSON])
def test_body_that_is_not_one_json_object_is_refused_with_400_within_1_s(served: Served, raw: bytes) -> None:
    started_s = time.monotonic()
    reply = post(served, raw)
    assert time.monotonic() - started_s < 1.0
    assert reply.status == 400, reply.body[:300]
    error = reply.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert reply.headers["x-request-id"] == error["metadata"]["request_id"]
    assert served.seen() == 0


WRONG_FIELDS: list[tuple[str, str]] = [
    ("model", f"{{{HI}}}"),
    ("model", f'{{"model": "", {HI}}}'),
    ("model", f'{{"model": 7, {HI}}}'),
    ("model", f'{{"model": null, {HI}}}'),
    ("messages", '{"model": "fake"}'),
    ("messages", '{"model": "fake", "messages": "hi"}'),
    ("messages", '{"model": "fake", "messages": []}'),
    ("max_tokens", f'{{"model": "fake", "max_tokens": true, {HI}}}'),
    ("max_tokens", f'{{"model": "fake", "max_tokens": 1.0, {HI}}}'),
    ("max_tokens", f'{{"model": "fake", "max_tokens": "100", {HI}}}'),
    ("max_tokens", f'{{"model": "fake", "max_tokens": -1, {HI}}}'),
    ("max_tokens", f'{{"model": "fake", "max_tokens": 0, {HI}}}'),
    ("max_tokens", f'{{"model": "fake", "max_tokens": 1000000000000000000000000000000, {HI}}}'),
    ("max_completion_tokens", f'{{"model": "fake", "max_completion_tokens": [], {HI}}}'),
    ("n", f'{{"model": "fake", "n": 0, {HI}}}'),
    ("n", f'{{"model": "fake", "n": 1.5, {HI}}}'),
    ("n", f'{{"model": "fake", "n": 100000, {HI}}}'),
    ("stream", f'{{"model": "fake", "stream": "yes", {HI}}}'),
    ("stream_options", f'{{"model": "fake", "stream": true, "stream_options": 3, {HI}}}'),
]


@pytest.mark.parametrize(
    ("field", "raw"), WRONG_FIELDS, ids=[f"{field}-{i}" for i, (field, _) in enumerate(WRONG_FIELDS)]
)
def test_400_for_an_invalid_field_names_the_field(served: Served, field: str, raw: str) -> None:
    reply = post(served, raw)
    assert reply.status == 400, reply.body[:300]
    error = reply.json()["error"]
    assert (error["param"] or "").split(".")[0] == field, error
    assert served.seen() == 0


@pytest.mark.parametrize("field", ["model", "max_tokens", "stream", "n", "max_completion_tokens"])
def test_duplicate_of_a_key_that_affects_the_price_is_refused(served: Served, field: str) -> None:
    values = {"model": '"fake"', "stream": "false"}
    value = values.get(field, "1")
    other_field = "" if field == "model" else '"model": "fake", '
    escaped = "\\u00" + f"{ord(field[0]):02x}" + field[1:]
    for second in (field, escaped):
        reply = post(served, f'{{{other_field}"{field}": {value}, {HI}, "{second}": {value}}}')
        assert reply.status == 400, (second, reply.body)
        assert reply.json()["error"]["code"] == "duplicate_key"
    assert served.seen() == 0


def test_same_key_in_a_nested_object_is_no_duplicate(served: Served) -> None:
    tool = {
        "type": "function",
        "function": {"name": "f", "parameters": {"properties": {"model": {"type": "string"}, "n": {}}}},
    }
    assert served.chat(tagged("wf", "r-nested"), tools=[tool], max_tokens=16, n=1).status == 200


@pytest.mark.parametrize(
    "headers", [{}, {"idempotency-key": "deep"}, {"x-farebox-cache": "60"}], ids=["plain", "key", "cache"]
)
def test_body_nested_deeper_than_it_can_be_written_is_400(served: Served, headers: dict[str, str]) -> None:
    """The serializer writes 254 levels, and the parser reads 1,024."""
    raw = f'{{"model": "fake", {HI}, "x": {"[" * 300}{"]" * 300}}}'
    reply = post(served, raw, tagged("wf", "r-deep") | headers)
    assert (reply.status, reply.json()["error"]["code"]) == (400, "invalid_json"), reply.body
    assert served.seen() == 0


def test_completion_without_a_cap_is_sent_with_the_cap_that_was_reserved(served: Served) -> None:
    """16 is what OpenAI documents. Other servers write on to the end of their context."""
    raw = b'{"model": "fake", "prompt": "hi"}'
    reply = served.gateway.request("POST", "/v1/completions", raw, tagged("wf", "r-completion"))
    assert reply.status == 200, reply.body
    assert served.last.body["max_tokens"] == 16


def test_max_tokens_of_1e9_is_clamped_to_the_models_maximum(served: Served) -> None:
    assert served.chat(tagged("wf", "r-much"), max_tokens=10**9).status == 200
    assert served.last.body["max_tokens"] <= 4096


def test_50000_messages_are_refused_within_5_s(served: Served) -> None:
    message = '{"role": "user", "content": "a"}'
    raw = f'{{"model": "fake", "messages": [{", ".join([message] * 50_000)}]}}'
    started_s = time.monotonic()
    reply = post(served, raw)
    assert (reply.status, reply.json()["error"]["param"]) == (400, "messages")
    assert time.monotonic() - started_s < 5


def test_control_and_unicode_characters_of_a_prompt_are_forwarded_unchanged(served: Served) -> None:
    odd = "\x00 \u202eevil\u202c Z͑ͫ̓ͪ̂ͫ̽͏a͓͋l͚g̬o 👩‍👩‍👧‍👦 ﷽ \u2028 \uffff раура1"
    assert served.chat(tagged("wf", "r-odd"), odd, max_tokens=16).status == 200
    assert served.last.body["messages"][0]["content"] == odd


def test_unknown_fields_are_forwarded(served: Served) -> None:
    assert served.chat(tagged("wf", "r-unknown"), max_tokens=16, brand_new={"a": [1, 2.5, None]}).status == 200
    assert served.last.body["brand_new"] == {"a": [1, 2.5, None]}


# ── size and encoding ──


def _raw(served: Served, request: bytes, body_pieces: Iterator[bytes] | None = None) -> bytes:
    host, _, port = served.gateway.url.removeprefix("http://").partition(":")
    answer = b""
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        try:
            connection.sendall(request)
            for piece in body_pieces or ():
                connection.sendall(piece)
            while piece := connection.recv(65536):
                answer += piece
        except (ConnectionError, TimeoutError):
            pass
    return answer


def test_declared_length_above_the_limit_is_refused_with_413_before_the_body(served: Served) -> None:
    declared = f"content-length: {BODY_BYTES_MAX + 1}\r\n\r\n".encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
    answer = _raw(served, head + declared)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b'"code":"request_too_large"' in answer
    assert served.seen() == 0


def test_chunked_body_above_the_limit_is_cut_off(served: Served) -> None:
    chunk = b"10000\r\n" + b"a" * 65536 + b"\r\n"
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(400):
            sent += 65536
            yield chunk

    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    answer = _raw(served, head, chunks())
    assert answer.startswith(b"HTTP/1.1 413") or (answer == b"" and sent < 400 * 65536)
    assert served.seen() == 0


def test_compressed_request_is_refused_with_415(served: Served) -> None:
    reply = post(served, b"\x1f\x8b", {**tagged(), "content-encoding": "gzip"})
    assert (reply.status, reply.json()["error"]["code"]) == (415, "unsupported_encoding")


# ── where a call goes is the configuration's business ──

DENIED_FIELDS = [
    "api_base",
    "base_url",
    "api_key",
    "api_version",
    "organization",
    "extra_headers",
    "custom_llm_provider",
]
DENIED_HEADERS = ["x-portkey-custom-host", "x-portkey-config", "helicone-target-url", "x-litellm-api-base", "api-base"]


@pytest.mark.parametrize("field", [*DENIED_FIELDS, "input_cost_per_token", "mock_response", "fallbacks", "proxy"])
def test_body_field_that_would_choose_the_upstream_is_refused(served: Served, field: str) -> None:
    for headers in ({}, tagged()):
        value: dict[str, Any] = {field: served.provider.url}
        reply = served.gateway.request(
            "POST",
            "/v1/chat/completions",
            {"model": "fake", "messages": [{"role": "user", "content": "hi"}], **value},
            headers,
        )
        assert (reply.status, reply.json()["error"]["param"]) == (400, field)
        reply = served.gateway.request("POST", "/v1/embeddings", {"model": "fake", "input": "hi", **value}, headers)
        assert (reply.status, reply.json()["error"]["param"]) == (400, field)
    assert served.seen() == 0


@pytest.mark.parametrize("field", DENIED_FIELDS)
def test_query_parameter_that_would_choose_the_upstream_is_refused(served: Served, field: str) -> None:
    raw = f'{{"model": "fake", {HI}}}'
    reply = post(served, raw, query=f"?a=1&{field}=http%3A%2F%2F127.0.0.1%3A9")
    assert (reply.status, reply.json()["error"]["param"]) == (400, field)
    assert served.seen() == 0


def test_query_with_200_parameters_is_refused_with_400(served: Served) -> None:
    reply = post(served, f'{{"model": "fake", {HI}}}', query="?" + "a=1&" * 200)
    assert (reply.status, reply.json()["error"]["param"]) == (400, "query")


@pytest.mark.parametrize("header", DENIED_HEADERS)
def test_header_that_would_choose_the_upstream_is_refused(served: Served, header: str) -> None:
    reply = served.chat({header: "http://169.254.169.254/"})
    assert (reply.status, reply.json()["error"]["param"]) == (400, header)
    assert served.seen() == 0


@pytest.mark.parametrize("name", ["http://127.0.0.1:9/v1", "openai/https://evil.example/x", "file:///etc/passwd"])
def test_url_as_model_name_is_refused(served: Served, name: str) -> None:
    reply = served.chat(model=name)
    assert (reply.status, reply.json()["error"]["param"]) == (400, "model")
    assert served.seen() == 0


@pytest.mark.parametrize(
    "name", ["gpt-4o-mini", "openai/gpt-4o-mini", "FAKE", "fake ", "fake\u200b", "../fake", "a" * 5000]
)
def test_unknown_model_is_refused_and_never_forwarded(served: Served, name: str) -> None:
    reply = served.chat(model=name)
    expected = (404, "model_not_found") if len(name) < 1000 else (400, "invalid_value")
    assert (reply.status, reply.json()["error"]["code"]) == expected
    assert served.seen() == 0
    assert len(reply.body) < 2000


def test_two_different_credentials_are_refused_with_400(served: Served) -> None:
    reply = served.chat({"authorization": "Bearer a", "x-api-key": "b"})
    assert reply.status == 400
    assert served.seen() == 0


def test_count_tokens_refuses_the_same_requests_as_calls(served: Served) -> None:
    body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
    assert served.gateway.request("POST", "/v1/messages/count_tokens", body).json()["input_tokens"] > 0
    for changed, headers in (
        ({**body, "model": "auto"}, {}),
        ({**body, "model": "nothing"}, {}),
        ({**body, "api_base": "http://x"}, {}),
        (body, {"api-base": "http://x"}),
    ):
        reply = served.gateway.request("POST", "/v1/messages/count_tokens", changed, headers)
        assert reply.status in (400, 404), changed
        assert reply.json()["type"] == "error"
    assert served.seen() == 0


def test_wrong_method_is_405_and_unknown_path_404_with_an_error_object(served: Served) -> None:
    for method, path, allowed in (
        ("GET", "/v1/chat/completions", "POST"),
        ("GET", "/messages/count_tokens", "POST"),
        ("DELETE", "/w/wf/v1/models", "GET, HEAD"),
        ("POST", "/v1/models/fake", "GET, HEAD"),
        ("POST", "/api/settings", "GET, HEAD, PUT"),
        ("POST", "/livez", "GET, HEAD"),
    ):
        reply = served.gateway.request(method, path, {} if method == "POST" else None)
        assert (reply.status, reply.headers["allow"]) == (405, allowed), path
        assert reply.json()["error"]["code"] == "method_not_allowed"
    reply = served.gateway.request("POST", "/v1/nothing", {})
    assert (reply.status, reply.json()["error"]["code"]) == (404, "not_found")
    assert reply.json()["error"]["metadata"]["request_id"] == reply.headers["x-request-id"]
    assert json.loads(served.gateway.get("/livez").body) is not None


@pytest.mark.parametrize(
    ("path", "headers", "status", "kind"),
    [
        ("/v1/messages/batches", {}, 404, "not_found_error"),
        ("/v1/nothing", {"anthropic-version": "2023-06-01"}, 404, "not_found_error"),
        ("/w/no%20name/v1/messages", {}, 400, "invalid_request_error"),
        ("/v1/messages/count_tokens", {}, 400, "invalid_request_error"),
        ("/v1//messages", {}, 400, "invalid_request_error"),
        ("//v1/nothing", {"anthropic-version": "2023-06-01"}, 400, "invalid_request_error"),
    ],
)
def test_anthropic_clients_get_anthropic_error_objects_on_every_path(
    served: Served, path: str, headers: dict[str, str], status: int, kind: str
) -> None:
    reply = served.gateway.request("POST", path, {}, headers)
    assert (reply.status, reply.json()["type"], reply.json()["error"]["type"]) == (status, "error", kind)
    assert reply.json()["request_id"] == reply.headers["request-id"]


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("https://evil.example", 403),
        ("http://evil.example:4000", 403),
        ("http://127.0.0.1.evil.example", 403),
        ("null", 403),
        ("http://localhost:3000", 200),
        ("http://[::1]:3000", 200),
        ("app://obsidian.md", 200),
    ],
)
def test_cross_origin_call_is_refused_when_no_key_is_required(served: Served, origin: str, status: int) -> None:
    reply = served.chat({"origin": origin}, max_tokens=16)
    assert reply.status == status, reply.body
    assert served.seen() == (status == 200)
