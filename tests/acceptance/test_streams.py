"""Streams: what reaches the client, how each of them ends, and what is booked if it fails."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from openai import OpenAI

from tests.acceptance.serving import PROMPT_TOKENS, RESERVED_TOKENS, Served, budget_comment, finish_of, serving, text_of
from tests.farebox_process import tagged
from tests.waiting import until

pytestmark = pytest.mark.xdist_group("acceptance-streams")

BUDGETS: list[dict[str, Any]] = [
    {"scope": "run", "match": "tokens", "tokens": 1000},
    {"scope": "run", "match": "sliced", "tokens": 2000, "hold": "slices"},
    {"scope": "run", "match": "wide", "tokens": 100_000},
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(
        tmp_path_factory.mktemp("streams"),
        budgets=BUDGETS,
        router_settings={"num_retries": 0, "stream_timeout": 1.5},
        reservations={"slice_tokens": 64},
    ) as running:
        yield running


def settled(served: Served, workflow: str, run: str) -> int:
    """What the run has settled once nothing of it is reserved."""
    facts: dict[str, Any] = {}

    def is_free() -> bool:
        facts.update(served.balance(tagged(workflow, run)))
        return bool(facts["reserved"] == 0)

    until(is_free, 3, f"the hold of {run} is resolved")
    return int(facts["settled"])


# ── usage and the closing comment ──


def test_usage_chunk_reaches_only_clients_that_asked_for_it(served: Served) -> None:
    served.provider.script(tokens=9, times=2)
    choices: list[tuple[dict[str, Any], bool]] = [({}, False), ({"stream_options": {"include_usage": True}}, True)]
    for options, asked in choices:
        reply, events = served.stream(**options)
        assert served.last.body["stream_options"]["include_usage"] is True, "the provider is always asked for it"
        usages = [json.loads(event).get("usage") for event in events if event.startswith("{")]
        assert [usage for usage in usages if usage] == ([{**usages[-1]}] if asked else [])
        if not asked:
            assert all("usage" not in json.loads(event) or json.loads(event)["usage"] is None for event in events[:-1])
        assert events[-1] == "[DONE]"
        assert not [event for event in events if event.startswith(":")], "an untagged stream gets no comment"
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert len(text_of(events).split()) == 9


def test_budget_comment_carries_the_figures_after_settlement(served: Served) -> None:
    served.provider.script(tokens=30)
    reply, events = served.stream(tagged("tokens", "r-note"), max_tokens=50)
    note = budget_comment(events)
    assert note["run"] == "r-note"
    assert note["step"] == "s"
    assert note["run_limit"] == 1000
    assert note["run_remaining"] == 1000 - PROMPT_TOKENS - 30
    # The headers were sent before that: they show what was left at admission, with the whole call reserved.
    assert reply.headers["x-budget-run-remaining"] == str(1000 - RESERVED_TOKENS - 50)
    assert settled(served, "tokens", "r-note") == PROMPT_TOKENS + 30


def test_openai_sdk_reads_a_tagged_stream_to_its_end(served: Served) -> None:
    served.provider.script(tokens=20, times=2)
    with OpenAI(base_url=served.gateway.url + "/v1", api_key="any", max_retries=0) as client:
        for asked in (False, True):
            stream = client.chat.completions.create(
                model="fake",
                messages=[{"role": "user", "content": "hi"}],
                stream=True,
                extra_headers=tagged("wide", "r-sdk"),
                **({"stream_options": {"include_usage": True}} if asked else {}),  # type: ignore[call-overload]
            )
            chunks = list(stream)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            assert len(text.split()) == 20
            assert (chunks[-1].usage is not None) == asked
    assert settled(served, "wide", "r-sdk") == 2 * (PROMPT_TOKENS + 20)


# ── the client leaves ──


def test_disconnect_ends_the_upstream_call_and_charges_what_was_streamed(served: Served) -> None:
    served.provider.script(tokens=500, chunk_delay_ms=10)
    connection = http.client.HTTPConnection(served.gateway.url.removeprefix("http://"), timeout=10)
    body = json.dumps({"model": "fake", "messages": [{"role": "user", "content": "hi"}], "stream": True})
    connection.request("POST", "/v1/chat/completions", body, tagged("wide", "r-gone"))
    response = connection.getresponse()
    response.read(600)
    left_s = time.monotonic()
    response.close()
    connection.close()
    until(lambda: served.last.disconnected_s is not None, 2, "the provider notices")
    assert time.monotonic() - left_s <= 1.0
    sent = served.last.content_events
    paid = settled(served, "wide", "r-gone")
    assert PROMPT_TOKENS < paid <= PROMPT_TOKENS + sent + 1
    assert sent < 500


def test_disconnect_before_the_first_byte_charges_only_the_prompt(served: Served) -> None:
    served.provider.script(delay_ms=10_000)
    connection = http.client.HTTPConnection(served.gateway.url.removeprefix("http://"), timeout=10)
    body = json.dumps({"model": "fake", "messages": [{"role": "user", "content": "hi"}]})
    connection.request("POST", "/v1/chat/completions", body, tagged("wide", "r-gone-early"))
    until(lambda: served.seen() == 1)
    connection.close()
    until(lambda: served.last.disconnected_s is not None, 2, "the upstream call is closed")
    assert settled(served, "wide", "r-gone-early") == PROMPT_TOKENS, "the provider has read the prompt and will bill it"


# ── broken streams ──

BROKEN: list[tuple[dict[str, Any], str | None]] = [
    ({"cut_after": 5}, None),
    ({"reset_after": 5}, None),
    ({"stall_after": 5}, None),
    ({"garbage_after": 5}, None),
    ({"error_after": 5}, "The fake provider was told to answer 529."),
    ({"big_event_bytes": 20_000_000, "garbage_after": 5}, None),
]


@pytest.mark.parametrize(("directive", "message"), BROKEN, ids=[next(iter(fault)) for fault, _ in BROKEN])
def test_broken_stream_ends_with_an_error_event_and_charges_what_was_streamed(
    served: Served, directive: dict[str, Any], message: str | None
) -> None:
    run = f"r-{next(iter(directive))}"
    served.provider.script(tokens=40, **directive)
    reply, events = served.stream(tagged("wide", run), max_tokens=100)
    assert reply.status == 200
    errors = [json.loads(event)["error"] for event in events if event.startswith('{"error"')]
    assert len(errors) == 1, events[-3:]
    assert errors[0]["message"]
    assert errors[0]["metadata"]["request_id"] == reply.headers["x-request-id"]
    if message:
        assert message in errors[0]["message"]
    sent, spent = min(served.last.content_events, 40), settled(served, "wide", run)
    assert PROMPT_TOKENS <= spent <= PROMPT_TOKENS + sent
    note = json.loads(events[-3].removeprefix(": budget "))  # before the error, at which clients stop reading
    assert note["run_remaining"] == note["run_limit"] - spent


def test_stream_without_done_gets_a_done_event(served: Served) -> None:
    served.provider.script(tokens=10, no_done=True)
    _, events = served.stream(tagged("wide", "r-no-done"))
    budget_comment(events)
    assert finish_of(events) == "stop"
    assert settled(served, "wide", "r-no-done") == PROMPT_TOKENS + 10


@pytest.mark.parametrize(
    ("directive", "expected"),
    [
        ({"usage": "missing"}, PROMPT_TOKENS + 12),
        ({"usage": "negative"}, PROMPT_TOKENS + 12),
        ({"usage": "zero"}, PROMPT_TOKENS + 12),
        ({"usage": "absurd"}, PROMPT_TOKENS + 12),
        ({"usage_json": '{"prompt_tokens": "many", "completion_tokens": null}'}, PROMPT_TOKENS + 12),
        ({"usage_json": '{"prompt_tokens": 9, "completion_tokens": 11, "total_tokens": 20}'}, 20),
    ],
    ids=["missing", "negative", "zero", "absurd", "nonsense", "given"],
)
@pytest.mark.parametrize("streamed", [True, False], ids=["stream", "whole"])
def test_missing_invalid_or_absurd_usage_is_replaced_by_our_own_count(
    served: Served, directive: dict[str, Any], expected: int, streamed: bool
) -> None:
    run = f"r-usage-{sum(str(directive).encode())}-{streamed}"
    served.provider.script(tokens=12, **directive)
    reply = served.chat(tagged("wide", run), max_tokens=100, stream=streamed)
    assert reply.status == 200
    assert settled(served, "wide", run) == expected


@pytest.mark.parametrize("directive", [{"crlf": True}, {"split_bytes": 7}], ids=["crlf", "split"])
def test_stream_is_the_same_with_crlf_or_split_chunks(served: Served, directive: dict[str, Any]) -> None:
    served.provider.script(tokens=15, **directive)
    _, events = served.stream(tagged("wide", f"r-{next(iter(directive))}"))
    budget_comment(events)
    assert len(text_of(events).split()) == 15


def test_buffered_upstream_answer_is_sent_as_a_stream(served: Served) -> None:
    served.provider.script(tokens=15, ignore_stream=True)
    reply, events = served.stream(tagged("wide", "r-whole"))
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert len(text_of(events).split()) == 15
    budget_comment(events)
    assert settled(served, "wide", "r-whole") == PROMPT_TOKENS + 15


# ── a provider that ignores the cap ──


def test_output_above_the_cap_is_charged_in_full_if_it_fits(served: Served) -> None:
    served.provider.script(tokens=300, ignore_max=True)
    _, events = served.stream(tagged("wide", "r-ignores"), max_tokens=50)
    budget_comment(events)
    assert len(text_of(events).split()) == 300
    assert settled(served, "wide", "r-ignores") == PROMPT_TOKENS + 300


def test_output_above_the_budget_is_cut_with_finish_reason_length(served: Served) -> None:
    served.provider.script(tokens=3000, ignore_max=True, words_per_chunk=4, chunk_delay_ms=1)
    _, events = served.stream(tagged("tokens", "r-cut"))
    note = budget_comment(events)
    assert finish_of(events) == "length"
    words_received = len(text_of(events).split())
    assert 500 < words_received <= 1000 - RESERVED_TOKENS
    paid = settled(served, "tokens", "r-cut")
    assert PROMPT_TOKENS + words_received <= paid <= 1000
    assert note["run_remaining"] == 1000 - paid
    until(lambda: served.last.disconnected_s is not None, 2, "the upstream call is closed")


def test_single_chunk_above_the_budget_is_cut_with_finish_reason_length(served: Served) -> None:
    chunk = {"id": "c", "choices": [{"index": 0, "delta": {"content": " time" * 30_000}, "finish_reason": "stop"}]}
    head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    served.provider.script(raw=f"{head}data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n")
    _, events = served.stream(tagged("tokens", "r-end-beyond"))
    budget_comment(events)
    assert (text_of(events), finish_of(events)) == ("", "length")
    assert settled(served, "tokens", "r-end-beyond") <= 1000


def test_early_usage_does_not_hide_output_that_follows_it(served: Served) -> None:
    def event(content: str, **fields: Any) -> str:
        return (
            f"data: {json.dumps({'id': 'c', 'choices': [{'index': 0, 'delta': {'content': content}}], **fields})}\n\n"
        )

    early = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": 1, "total_tokens": PROMPT_TOKENS + 1}
    head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    for run, more in (("r-early-cut-off", 60), ("r-early-beyond", 30_000)):
        served.provider.script(raw=head + event("time", usage=early) + event(" time" * more))
        served.stream(tagged("tokens", run))
        assert settled(served, "tokens", run) >= min(1000 - RESERVED_TOKENS, 61)
    assert settled(served, "tokens", "r-early-beyond") <= 1000


@pytest.mark.parametrize("early_tokens", [0, 1])
def test_usage_reported_only_before_the_text_does_not_hide_the_text(served: Served, early_tokens: int) -> None:
    def event(delta: dict[str, str], reason: str | None = None, **fields: Any) -> str:
        return f"data: {json.dumps({'id': 'c', 'choices': [{'index': 0, 'delta': delta, 'finish_reason': reason}], **fields})}\n\n"

    usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": early_tokens}
    head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    parts = [event({"role": "assistant"}, usage=usage), *[event({"content": " time"})] * 12, event({}, "stop")]
    served.provider.script(raw=head + "".join(parts) + "data: [DONE]\n\n")
    _, events = served.stream(tagged("wide", f"r-usage-first-{early_tokens}"))
    assert (len(text_of(events).split()), finish_of(events)) == (12, "stop")
    assert settled(served, "wide", f"r-usage-first-{early_tokens}") == PROMPT_TOKENS + 12


@pytest.mark.parametrize("streamed", [True, False], ids=["stream", "whole"])
def test_usage_of_no_output_beside_a_text_is_replaced_by_our_own_count(served: Served, streamed: bool) -> None:
    run = f"r-no-output-{streamed}"
    served.provider.script(tokens=12, usage_json=json.dumps({"prompt_tokens": 30, "completion_tokens": 0}))
    assert served.chat(tagged("wide", run), max_tokens=100, stream=streamed).status == 200
    assert settled(served, "wide", run) == 30 + 12


# ── slices ──


def test_sliced_holds_admit_siblings_whose_worst_cases_would_not_fit(served: Served) -> None:
    headers = tagged("sliced", "r-siblings")
    served.provider.script(tokens=150, times=4, chunk_delay_ms=5)
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda _: served.stream(headers), range(4)))
    for reply, events in replies:
        assert reply.status == 200
        budget_comment(events)
        assert (len(text_of(events).split()), finish_of(events)) == (150, "stop")
    assert settled(served, "sliced", "r-siblings") == 4 * (PROMPT_TOKENS + 150)


def test_sliced_hold_is_extended_until_the_answer_ends(served: Served) -> None:
    served.provider.script(tokens=1900)
    _, events = served.stream(tagged("sliced", "r-grows"))
    budget_comment(events)
    assert (len(text_of(events).split()), finish_of(events)) == (1900, "stop")
    assert settled(served, "sliced", "r-grows") == PROMPT_TOKENS + 1900


def test_sliced_answer_that_reaches_the_limit_ends_with_length(served: Served) -> None:
    served.provider.script(tokens=4000)
    _, events = served.stream(tagged("sliced", "r-ends"))
    budget_comment(events)
    words_received = len(text_of(events).split())
    assert finish_of(events) == "length"
    assert words_received >= 1800, "nearly all of the budget was used"
    assert PROMPT_TOKENS + words_received <= settled(served, "sliced", "r-ends") <= 2000


def test_buffered_call_with_a_sliced_hold_gets_one_complete_answer(served: Served) -> None:
    served.provider.script(tokens=200)
    reply = served.chat(tagged("sliced", "r-buffered"))
    answer = reply.json()
    assert len(answer["choices"][0]["message"]["content"].split()) == 200
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["total_tokens"] == PROMPT_TOKENS + 200
    assert reply.headers["x-budget-run-remaining"] == str(2000 - PROMPT_TOKENS - 200)
    served.provider.script(tokens=4000)
    answer = served.chat(tagged("sliced", "r-buffered")).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert settled(served, "sliced", "r-buffered") <= 2000


def test_max_tokens_bounds_a_sliced_hold(served: Served) -> None:
    served.provider.script(tokens=4000)
    _, events = served.stream(tagged("sliced", "r-own-cap"), max_tokens=100)
    assert served.last.body["max_tokens"] == 100
    budget_comment(events)
    assert (len(text_of(events).split()), finish_of(events)) == (100, "length")
    assert settled(served, "sliced", "r-own-cap") == PROMPT_TOKENS + 100


def test_8_concurrent_sliced_calls_end_cleanly_within_the_limit(served: Served) -> None:
    headers = tagged("sliced", "r-crowd")
    served.provider.script(tokens=600, times=None, chunk_delay_ms=1)
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: served.stream(headers), range(8)))
    words_received = 0
    for reply, events in replies:
        if reply.status != 200:
            assert reply.status in (402, 429)
            continue
        budget_comment(events)
        assert finish_of(events) in ("stop", "length")
        words_received += len(text_of(events).split())
    paid = settled(served, "sliced", "r-crowd")
    assert 0 < words_received <= paid <= 2000
