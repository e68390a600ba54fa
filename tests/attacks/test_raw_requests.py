"""Requests that two readers could understand differently, byte for byte: each is refused, or understood in one way.

The table is exact on purpose: an upgrade of the server below us that changes one line of it fails here, not in production.
"""

from __future__ import annotations

import pytest

from tests.acceptance.serving import Served
from tests.attacks.raw_http import CHAT, connect, exchange, read_reply, request
from tests.waiting import until

pytestmark = pytest.mark.xdist_group("attacks")

CHUNKED = b"%x\r\n" % len(CHAT) + CHAT + b"\r\n"
TE = b"transfer-encoding: chunked"
SMUGGLED = b"0\r\n\r\n" + request()
BIG = b"a" * 1_000_000


def chunked(body: bytes, *headers: bytes) -> bytes:
    return request(headers=list(headers) or [TE], length=False, body=body)


def sized(value: bytes) -> bytes:
    return request(headers=[b"content-length: " + value], length=False)


FRAMING = [
    ("plain", request(), [200], 1),
    ("length and chunks together", request(headers=[TE], body=SMUGGLED), [400], 0),
    ("chunked and then identity", chunked(SMUGGLED, TE, b"transfer-encoding: identity"), [400], 0),
    ("chunked twice", chunked(CHUNKED + b"0\r\n\r\n", TE, TE), [400], 0),
    ("an encoding beside chunked", chunked(CHUNKED + b"0\r\n\r\n", b"transfer-encoding: identity, chunked"), [400], 0),
    ("an encoding after chunked", chunked(SMUGGLED, b"transfer-encoding: chunked, identity"), [400], 0),
    ("an unknown encoding", chunked(SMUGGLED, b"transfer-encoding: xchunked"), [400], 0),
    ("a space before the colon", chunked(SMUGGLED, b"transfer-encoding : chunked"), [400], 0),
    ("a control character before the value", chunked(SMUGGLED, b"transfer-encoding:\x0bchunked"), [400], 0),
    ("two equal lengths", request(headers=[b"content-length: %d" % len(CHAT)]), [400], 0),
    ("two lengths", request(headers=[b"content-length: 4"]), [400], 0),
    ("a list of lengths", sized(b"4, 4"), [400], 0),
    ("a length with a sign", sized(b"+4"), [400], 0),
    ("a negative length", sized(b"-1"), [400], 0),
    ("a length in hexadecimal", sized(b"0x4c"), [400], 0),
    ("a length above 64 bits", sized(b"99999999999999999999"), [400], 0),
    ("a chunk size above 64 bits", chunked(b"fffffffffffffffff\r\nabc"), [400], 0),
    ("a negative chunk size", chunked(b"-1\r\nabc"), [400], 0),
    ("chunks that end in LF", chunked(CHUNKED.replace(b"\r\n", b"\n") + b"0\n\n"), [400], 0),
    ("a chunk extension of a megabyte", chunked(b"1;" + BIG + b"\r\na\r\n0\r\n\r\n"), [400], 0),
    ("a trailer of a megabyte", chunked(CHUNKED + b"0\r\nx: " + BIG + b"\r\n\r\n"), [400], 0),
    ("trailers are no headers", chunked(CHUNKED + b"0\r\nhost: evil\r\nx-workflow-step: a\r\n\r\n"), [200], 1),
    ("lines that end in LF", request().replace(b"\r\n", b"\n"), [400], 0),
    ("a CR inside a value", request(headers=[b"x-a: b\rx-c: d"]), [400], 0),
    ("a folded line", request(headers=[b"x-a: b", b"  folded"]), [400], 0),
    ("a name with a space", request(headers=[b"x-a : b"]), [400], 0),
    ("a line without a colon", request(headers=[b"nonsense"]), [400], 0),
    ("a value without a name", request(headers=[b": nonsense"]), [400], 0),
    ("NUL in a value", request(headers=[b"x-a: b\0c"]), [400], 0),
    ("a space before the method", b" " + request(), [400], 0),
    ("an empty line before the method", b"\r\n" + request(), [200], 1),
    ("an unknown version", request(version=b"HTTP/9.9"), [400], 0),
    ("HTTP/0.9", b"GET /livez\r\n\r\n", [400], 0),
    ("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [400], 0),
    ("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 500, [400], 0),
    ("a tunnel", b"CONNECT evil:443 HTTP/1.1\r\nhost: evil:443\r\n\r\n", [400], 0),
    ("two requests at once", request() + request(), [200, 200], 2),
    ("what follows the body is a request of its own", request() + request(path=b"/nowhere"), [200, 404], 1),
    ("a header of a megabyte", request(headers=[b"x-a: " + BIG]), [431], 0),
    ("a name of a megabyte", request(headers=[BIG + b": x"]), [431], 0),
    ("a path of a megabyte", request(path=b"/" + BIG), [431], 0),
    ("five thousand headers", request(headers=[b"x-%d: 1" % at for at in range(5000)]), [431], 0),
]

WHO_AND_WHERE = [
    ("two hosts", request(headers=[b"host: evil"]), 400),
    ("no host", request(host=None), 400),
    ("no host in HTTP/1.0", request(host=None, version=b"HTTP/1.0"), 400),
    ("an empty host", request(host=b""), 400),
    ("a host with a path", request(host=b"a/#@evil"), 400),
    ("a host with a query", request(host=b"a?b"), 400),
    ("a host with a user", request(host=b"a@b"), 400),
    ("a host with a space", request(host=b"a b"), 400),
    ("two credentials", request(headers=[b"authorization: Bearer a", b"authorization: Bearer b"]), 400),
    ("two credentials in two headers", request(headers=[b"authorization: Bearer a", b"x-api-key: b"]), 400),
    ("a method in a header", request(headers=[b"x-http-method-override: DELETE"]), 400),
    ("a path in a header", request(headers=[b"x-original-url: /admin"]), 400),
    ("a compressed body", request(headers=[b"content-encoding: gzip"]), 415),
    ("a target that is only a host", request(path=b"http://evil"), 400),
    ("a target that is an authority", request(path=b"evil:80"), 400),
    ("a target that is a star", request(path=b"*"), 400),
    ("bytes beyond ASCII in the path", request(path="/v1/ché".encode()), 400),
    ("a space in the path", request(path=b"/v1/chat completions"), 400),
    ("TRACE", request(b"TRACE"), 405),
    ("a preflight", request(b"OPTIONS", headers=[b"origin: http://evil", b"access-control-request-method: POST"]), 405),
    ("a method of WebDAV", request(b"PROPFIND"), 405),
    ("a method in small letters", request(b"post"), 400),
    ("a model call by GET", request(b"GET", body=b""), 405),
    ("a model call by PUT", request(b"PUT"), 405),
]

# Spellings of a protected path that a lenient parser would accept.
MISSPELT_PATHS = [
    b"//api/keys",
    b"/api//keys",
    b"/api/./keys",
    b"/x/../api/keys",
    b"/x/%2e%2e/api/keys",
    b"/api%2fkeys",
    b"/api%2Fkeys",
    b"/api/keys;x=1",
    b"/api;/keys",
    b"/api\\keys",
    b"/api%5ckeys",
    b"/api/keys%00",
    b"/api/keys.",
    b"/api/keys%20",
    b"/API/keys",
    b"/Api/Keys",
    b"/api/key%73/",
    b"/v1/api/keys",
    b"/w/x/api/keys",
    b"/w/x/v1/../../api/keys",
    b"/metrics/",
    b"/metrics%09",
]


@pytest.mark.parametrize(
    ("sent", "statuses", "calls"), [probe[1:] for probe in FRAMING], ids=[probe[0] for probe in FRAMING]
)
def test_ambiguous_framing_is_refused_or_read_in_one_way(
    served: Served, sent: bytes, statuses: list[int], calls: int
) -> None:
    before = served.seen()
    reply = exchange(served.gateway.url, sent)
    assert reply.statuses == statuses, reply.raw[:500]
    assert served.seen() - before == calls, "the provider received another number of calls"
    if statuses[-1] in (400, 431):
        assert reply.is_closed, "nothing after a malformed request can be understood"
        assert reply.answers[-1].json()["error"]["message"]


@pytest.mark.parametrize(
    ("sent", "status"), [probe[1:] for probe in WHO_AND_WHERE], ids=[probe[0] for probe in WHO_AND_WHERE]
)
def test_unusual_request_lines_and_headers_are_refused(served: Served, sent: bytes, status: int) -> None:
    before = served.seen()
    reply = exchange(served.gateway.url, sent)
    assert reply.statuses == [status], reply.raw[:500]
    assert served.seen() == before
    assert not [name for name in reply.answers[0].headers if name.startswith("access-control-")]


@pytest.mark.parametrize("path", MISSPELT_PATHS)
def test_protected_path_has_only_one_spelling(served: Served, path: bytes) -> None:
    """Without any key this machine may read /api/keys: every other spelling is a 404 or a 400 for it all the same."""
    plain = exchange(served.gateway.url, request(b"GET", b"/api/keys", body=b"", length=False))
    assert plain.statuses == [200]
    odd = exchange(served.gateway.url, request(b"GET", path, body=b"", length=False))
    assert odd.statuses in ([400], [404]), odd.raw[:300]


@pytest.mark.parametrize("offered", [b"h2c", b"websocket", b"TLS/1.0"])
def test_upgrade_header_is_ignored(served: Served, offered: bytes) -> None:
    """Java's client offers h2c with its first request. It gets its answer, and so does what follows on the connection."""
    headers = [b"connection: Upgrade, HTTP2-Settings", b"upgrade: " + offered, b"http2-settings: AAMAAABk"]
    before = served.seen()
    both = exchange(served.gateway.url, request(headers=headers) + chunked(CHUNKED + b"0\r\n\r\n", TE, *headers))
    assert both.statuses == [200, 200], both.raw[:500]
    assert served.seen() - before == 2


def test_expect_100_continue_is_answered(served: Served) -> None:
    """The client sends its body only after the interim answer."""
    whole = request(headers=[b"expect: 100-continue", b"connection: close"])
    with connect(served.gateway.url) as connection:
        connection.sendall(whole.removesuffix(CHAT))
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(CHAT)
        assert read_reply(connection, 20.0).statuses == [200]


def test_hop_by_hop_and_client_headers_are_not_forwarded(served: Served) -> None:
    """And no trick with `connection` removes the gateway's own headers."""
    sent = [
        b"authorization: Bearer the-clients-own",
        b"connection: authorization, content-type, x-workflow-id",
        b"te: trailers",
        b"proxy-authorization: Basic c2VjcmV0",
        b"cookie: session=secret",
        b"x-workflow-id: hops",
        b"x-workflow-run-id: r-hops",
        b"x-anything: secret",
    ]
    assert exchange(served.gateway.url, request(headers=sent)).statuses == [200]
    arrived = served.last.headers
    assert arrived["authorization"] == "Bearer upstream-key"
    assert arrived["content-type"] == "application/json"
    for name in ("te", "proxy-authorization", "cookie", "x-anything"):
        assert name not in arrived
    assert not [name for name in arrived if name.startswith("x-workflow-")]


@pytest.mark.parametrize("name", [b"x-workflow-id", b"x-workflow-run-id", b"x-workflow-step", b"x-workflow-agent"])
@pytest.mark.parametrize(
    "value", [b"a%0d%0aset-cookie:%20a", b"a\tb", b"a b", b"\xff\xfe", b"a\x85b", b"a" * 129, b"\xe2\x80\xae"]
)
def test_invalid_tag_value_reaches_no_header_and_no_log_line(served: Served, name: bytes, value: bytes) -> None:
    headers = [name + b": " + value, *([] if name == b"x-workflow-id" else [b"x-workflow-id: wf"])]
    reply = exchange(served.gateway.url, request(headers=headers))
    assert reply.statuses == [400]
    assert reply.answers[0].json()["error"]["param"] == name.decode()
    assert "set-cookie" not in reply.answers[0].headers
    assert "set-cookie" not in served.gateway.log


def test_forwarded_request_is_not_treated_as_local(served: Served) -> None:
    """Without keys only this machine may administer and call, and a forwarded request comes from elsewhere."""
    for name in (b"x-forwarded-for", b"forwarded", b"x-real-ip"):
        reply = exchange(served.gateway.url, request(b"GET", b"/api/keys", [name + b": 127.0.0.1"], b"", length=False))
        assert reply.statuses == [401], name
        assert exchange(served.gateway.url, request(headers=[name + b": 127.0.0.1"])).statuses == [401], name


def test_call_followed_by_garbage_leaves_no_reservation(served: Served) -> None:
    """The connection is closed; the call ends as if the client had left."""
    headers = [b"x-workflow-id: small", b"x-workflow-run-id: r-garbage", b"x-workflow-step: s"]
    for _ in range(5):
        assert exchange(served.gateway.url, request(headers=headers) + b"\x00\x01\x02").is_closed
    until(lambda: served.metric("farebox_calls_in_flight") == 0, description="calls are over")
    facts = served.balance({"x-workflow-id": "small", "x-workflow-run-id": "r-garbage", "x-workflow-step": "s"})
    assert facts["reserved"] == 0
