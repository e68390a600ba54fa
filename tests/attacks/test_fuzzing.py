"""Random bytes for every parser and for the control API: they are accepted or refused, and never an internal error.

Inputs that once broke something are kept in `tests/attacks/crashes/<target>/` and tried first, on every run. A new one is written there
by hand, with a name that says what it is.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import schemathesis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gateway.config.faults import ConfigError
from gateway.config.loading import parse_config
from gateway.endpoints.api.openapi import document
from gateway.errors import GatewayError
from gateway.tags import read_tags, split_path
from gateway.wire.body import parse_object
from gateway.wire.protocols import PROTOCOLS
from gateway.wire.sse import EventSplitter, data_of
from tests.acceptance.serving import Served, serving

pytestmark = pytest.mark.xdist_group("attacks-fuzzing")
ADMIN = "an-admin-key-of-the-environment"
AS_ADMIN = {"authorization": f"Bearer {ADMIN}"}
CRASHES = Path(__file__).parent / "crashes"
FORMS = sorted(set(PROTOCOLS.values()), key=lambda protocol: protocol.name)


BytesTest = Callable[..., None]


def stored_crashes(target: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CRASHES / target).glob("*"))]


def with_stored_crashes(target: str) -> Callable[[BytesTest], BytesTest]:
    """Every stored crash is an example of its own."""

    def decorate(test: BytesTest) -> BytesTest:
        for data in stored_crashes(target):
            test = example(data)(test)
        return test

    return decorate


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
FIELDS = [
    "model",
    "messages",
    "input",
    "prompt",
    "max_tokens",
    "n",
    "stream",
    "tools",
    "metadata",
    "stream_options",
    "system",
]
requests = st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), json_values, max_size=6).map(
    lambda body: json.dumps(body).encode()
)


@with_stored_crashes("events")
@given(st.binary(max_size=400) | st.text(alphabet='data: {}[]\r\n"event', max_size=300).map(str.encode))
def test_event_splitter_gives_the_same_events_for_any_chunking(data: bytes) -> None:
    """The same events, in whatever pieces the bytes come."""
    events = EventSplitter().feed(data)
    for event in events:
        lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
        assert data_of(event) == (b"\n".join(lines) if lines else None)
    for size in (1, 7):
        splitter = EventSplitter()
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        assert [event for piece in pieces for event in splitter.feed(piece)] == events


@with_stored_crashes("bodies")
@given(st.binary(max_size=300) | requests)
def test_any_body_is_parsed_or_refused_with_a_4xx(data: bytes) -> None:
    """Parsed, or refused with a message; and what is parsed can be written again."""
    with contextlib.suppress(GatewayError):
        parse_object(data)
    for protocol in FORMS:
        request = parsed(protocol, data)
        if request is None:
            continue
        assert request.choices >= 1
        assert request.output_tokens_max is None or request.output_tokens_max >= 0
        orjson.dumps(protocol.upstream_body(request, 7, request.stream))


def parsed(protocol: Any, data: bytes) -> Any:
    """None if it was refused with a client error."""
    try:
        return protocol.parse(data)
    except GatewayError as refused:
        if not (400 <= refused.status < 500 and refused.message):
            raise
    return None


@with_stored_crashes("tags")
@given(
    st.binary(max_size=200)
    | st.dictionaries(
        st.sampled_from(
            ["x-workflow-id", "x-workflow-run-id", "x-workflow-step", "x-workflow-budget-usd", "baggage", "session_id"]
        )
        | st.text(max_size=12),
        st.text(max_size=30),
        max_size=6,
    ).map(lambda headers: json.dumps(headers).encode())
)
def test_any_tag_headers_give_valid_tags_or_a_refusal(data: bytes) -> None:
    text = data.decode("latin-1")  # as headers are; the dictionaries above come escaped
    try:
        headers = json.loads(text) if text.startswith("{") else {"x-workflow-id": text, "baggage": text}
    except ValueError:
        headers = {"x-workflow-id": text}
    if not isinstance(headers, dict):
        return
    strings = {str(name).lower(): value for name, value in headers.items() if isinstance(value, str)}
    for metadata in (None, headers, text):
        with contextlib.suppress(GatewayError):
            tags = read_tags(strings, {}, metadata, {})
            for value in (tags.workflow, tags.run, tags.step):
                assert value is None or (0 < len(value) <= 128 and value.isascii() and value.isprintable())
    with contextlib.suppress(GatewayError):
        split_path("/w/" + text)


@with_stored_crashes("configurations")
@given(
    st.binary(max_size=200)
    | st.dictionaries(
        st.sampled_from(["model_list", "budgets", "storage", "server", "settings", "tiers", "alerts"]),
        json_values,
        max_size=4,
    ).map(lambda config: json.dumps(config, allow_nan=False).encode() if _is_finite(config) else b"{}")
    | st.text(alphabet="- :[]{}&*!|>\"'\n\t#%@a1", max_size=80).map(str.encode)
)
@settings(max_examples=60)
def test_any_configuration_is_loaded_or_refused(data: bytes) -> None:
    with contextlib.suppress(ConfigError, UnicodeDecodeError):
        parse_config(data.decode(), environ={})


def _is_finite(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("fuzzed"), environment={"FAREBOX_ADMIN_KEY": ADMIN}) as running:
        yield running
        assert "Traceback" not in running.gateway.log, running.gateway.log[-3000:]


api = schemathesis.openapi.from_dict(json.loads(json.dumps(document())))


@api.parametrize()
@settings(max_examples=4, suppress_health_check=list(HealthCheck), derandomize=True)
def test_any_request_to_the_control_api_gets_no_500(case: Any, served: Served) -> None:
    """Whatever fits the published schema, and what does not, on every route."""
    case.headers = {}  # made-up keys would keep everything else out
    reply = case.call(base_url=served.gateway.url, headers=AS_ADMIN)
    assert reply.status_code < 500 or reply.status_code == 503, (reply.status_code, reply.text[:500])
    if reply.status_code >= 400:
        assert reply.json()["error"]["message"]


def test_too_many_steps_are_a_400_on_every_route(served: Served) -> None:
    """Found by the test above: a run with too many steps was a 500."""
    many = [{"id": f"g-{at}", "steps": [{"id": f"s-{at}-{inner}"} for inner in range(100)]} for at in range(6)]
    for method, path in (("POST", "/api/runs"), ("POST", "/api/allocate"), ("PUT", "/api/workflows/many")):
        body: dict[str, Any] = {"workflow": "many", "steps": many} if path != "/api/workflows/many" else {"steps": many}
        if path == "/api/allocate":
            body["strategy"] = "equal"
        reply = served.gateway.request(method, path, body, AS_ADMIN)
        assert reply.status == 400, (path, reply.body[:300])
        assert "steps" in reply.json()["error"]["message"]
