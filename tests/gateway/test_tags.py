"""Tags from every source, without a server: the tables of `tests/acceptance/test_tags.py` go over the wire."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.errors import BadRequest
from gateway.tags import UNTAGGED, Tags, read_tags, split_path
from policies.amounts import AMOUNT_MAX, UNLIMITED, Limit

PATHS: list[tuple[str, dict[str, str], str]] = [
    ("/v1/chat/completions", {}, "/v1/chat/completions"),
    ("/w/a/v1/chat/completions", {"workflow": "a"}, "/v1/chat/completions"),
    ("/w/a/r/b/v1/x", {"workflow": "a", "run": "b"}, "/v1/x"),
    ("/w/a/s/c/v1/x", {"workflow": "a", "step": "c"}, "/v1/x"),
    ("/w/a/r/b/s/c/v1/x", {"workflow": "a", "run": "b", "step": "c"}, "/v1/x"),
    ("/w/a/s/c/r/b/v1/x", {"workflow": "a", "step": "c"}, "/r/b/v1/x"),
    ("/r/b/v1/x", {}, "/r/b/v1/x"),
    ("/w/a", {}, "/w/a"),
    ("/w/w/r/r/s/s/w/w", {"workflow": "w", "run": "r", "step": "s"}, "/w/w"),
]


@pytest.mark.parametrize(("path", "tags", "path_rest"), PATHS)
def test_path_prefix_is_split_into_tags_and_rest(path: str, tags: dict[str, str], path_rest: str) -> None:
    assert split_path(path) == (tags, path_rest)


@pytest.mark.parametrize("path", ["/w//v1/x", "/w/a b/v1/x", "/w/a/r/\x00/v1/x", "/w/" + "x" * 129 + "/v1", "/w/é/v1"])
def test_invalid_path_segment_is_named_in_the_error(path: str) -> None:
    with pytest.raises(BadRequest, match="Path segment /"):
        split_path(path)


READ: list[tuple[dict[str, str], dict[str, str], Any, dict[str, str], Tags]] = [
    ({}, {}, None, {}, UNTAGGED),
    ({}, {}, {"run_id": "r", "step": ["free", "form"]}, {}, UNTAGGED),
    ({}, {}, "metadata of another kind", {}, UNTAGGED),
    ({"x-session-id": "s", "x-workflow-agent": "a"}, {}, None, {}, UNTAGGED),
    ({"x-workflow-id": "w"}, {}, None, {}, Tags("w")),
    ({"x-workflow-id": "w", "x-session-id": "not ours, and no error"}, {}, None, {}, Tags("w")),
    ({"x-workflow-id": "w", "session-id": "s"}, {}, None, {}, Tags("w", "s")),
    ({}, {}, None, {"workflow": "key", "agent": "bot"}, Tags("key", agent="bot")),
    ({"x-workflow-agent": "own"}, {}, None, {"workflow": "key", "agent": "bot"}, Tags("key", agent="own")),
    ({"x-workflow-id": "w"}, {}, None, {"agent": "bot"}, Tags("w", agent="bot")),
    ({}, {}, None, {"agent": "bot"}, UNTAGGED),
    ({"x-session-id": "s"}, {}, None, {"workflow": "key"}, Tags("key", "s")),
    ({"baggage": "a=b,,=,workflow.id = w%2F1 ; x=y"}, {}, None, {}, Tags("w/1")),
    ({"baggage": "nothing of ours"}, {}, None, {}, UNTAGGED),
    (
        {"x-workflow-id": "w", "x-workflow-priority": "critical", "x-workflow-intent": "extract"},
        {},
        None,
        {},
        Tags("w", priority="critical", intent="extract"),
    ),
    (
        {"x-workflow-id": "w", "x-workflow-options": " no-clamp ,,no-route"},
        {},
        None,
        {},
        Tags("w", options=frozenset({"no-clamp", "no-route"})),
    ),
    (
        {"x-workflow-id": "w", "x-workflow-parent-run-id": "p", "x-workflow-user": "u@x.org"},
        {},
        None,
        {},
        Tags("w", parent_run="p", user="u@x.org"),
    ),
]


@pytest.mark.parametrize(("headers", "path", "metadata", "defaults", "expected"), READ)
def test_tags_are_read_from_headers_path_metadata_baggage_and_key_defaults(
    headers: dict[str, str], path: dict[str, str], metadata: Any, defaults: dict[str, str], expected: Tags
) -> None:
    assert read_tags(headers, path, metadata, defaults) == expected


@pytest.mark.parametrize("value", ["...", ".a", "a.", "a..b", "a/.b", "a/b..", "/", "a//b", "-"])
def test_names_may_contain_dots_and_slashes(value: str) -> None:
    assert read_tags({"x-workflow-id": value}, {}, {"run_id": value}, {}) == Tags(value, value)


LIMITS: list[tuple[dict[str, str], Limit]] = [
    ({}, UNLIMITED),
    ({"tokens": "0"}, Limit(tokens=0)),
    ({"tokens": "20000"}, Limit(tokens=20000)),
    ({"tokens": str(AMOUNT_MAX)}, Limit(tokens=AMOUNT_MAX)),
    ({"usd": "0.50"}, Limit(nano_usd=500_000_000)),
    ({"usd": "1e-9"}, Limit(nano_usd=1)),
    ({"usd": "0.0000000019"}, Limit(nano_usd=1)),
    ({"tokens": "5", "usd": "9007199"}, Limit(tokens=5, nano_usd=9_007_199 * 10**9)),
]


@pytest.mark.parametrize(("budget", "expected"), LIMITS)
def test_budget_headers_are_read_as_whole_tokens_and_nano_usd(budget: dict[str, str], expected: Limit) -> None:
    headers = {f"x-workflow-budget-{unit}": value for unit, value in budget.items()}
    assert read_tags({"x-workflow-id": "w", **headers}, {}, None, {}).budget == expected


BAD: list[tuple[str, str]] = [
    ("x-workflow-budget-tokens", value)
    for value in ("", "-1", "+5", "1.0", "1e3", "0x10", " 5", "٣", str(AMOUNT_MAX + 1), "9" * 5000)
]
BAD += [
    ("x-workflow-budget-usd", value)
    for value in (
        "",
        "abc",
        "-0.01",
        "NaN",
        "sNaN",
        "inf",
        "1e99999999",
        "1e999999999999",
        "9007200",
        "0." + "1" * 40,
        "1_0",
        " 1",
        "٣",
    )
]
BAD += [("x-workflow-id", value) for value in ("", " ", "a b", "a\n", "a\r\nx: y", "é", "\x00", "x" * 129, "a\u202e")]
DOTS = (".", "..", "../a", "a/..", "a/./b", "a/../../b", "/.", "./")
BAD += [(header, value) for header in ("x-workflow-id", "x-workflow-run-id", "x-workflow-step") for value in DOTS]
BAD += [("x-workflow-options", "clamp"), ("x-workflow-priority", "HIGH"), ("x-workflow-intent", "")]


@pytest.mark.parametrize(("header", "value"), BAD)
def test_invalid_header_is_named_in_a_bounded_single_line_message(header: str, value: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read_tags({"x-workflow-id": "w", header: value}, {}, None, {})
    assert caught.value.param == header
    assert len(caught.value.message) < 300
    assert "\r" not in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("unit", "value", "limit"),
    [
        ("tokens", "9007199254740993", "9007199254740991"),
        ("tokens", "9" * 30, "9007199254740991"),
        ("usd", "1e30", "9007199"),
    ],
)
def test_too_large_budget_header_is_refused_with_the_maximum(unit: str, value: str, limit: str) -> None:
    with pytest.raises(BadRequest, match=f"is more than a budget may have, {limit}"):
        read_tags({"x-workflow-id": "w", f"x-workflow-budget-{unit}": value}, {}, None, {})


@pytest.mark.parametrize("key", ["run_id", "step", "agent"])
@pytest.mark.parametrize("value", [7, "", "a b", ["x"], "x" * 200, ".."])
def test_invalid_metadata_tag_is_named_in_the_error(key: str, value: Any) -> None:
    with pytest.raises(BadRequest) as caught:
        read_tags({}, {}, {"workflow_id": "w", key: value}, {})
    assert caught.value.param == f"metadata.{key}"
