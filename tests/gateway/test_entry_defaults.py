"""Whose fields a request has when one deployment after another is asked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gateway.pipeline.entry_defaults import with_defaults_of
from gateway.upstream.port import Deployment
from gateway.wire.completions import CompletionsProtocol
from gateway.wire.protocol import Request


def entry(**params: Any) -> Deployment:
    return Deployment("m/0", "m", "openai", "gpt-x", "auto", params, {})


def chat(**fields: Any) -> Request:
    return Request({"model": "m", "messages": [], **fields}, "m")


def test_an_entry_that_adds_nothing_leaves_the_request_as_it_is() -> None:
    request = chat(temperature=1)
    assert with_defaults_of(entry(api_base="https://x", temperature=0), request) is request


def test_the_client_beats_the_entry_and_the_next_entry_beats_the_one_before() -> None:
    request = chat(seed=7)
    first = with_defaults_of(entry(seed=1, temperature=0.1, n=2, max_tokens=30), request)
    assert first.body == {**request.body, "temperature": 0.1, "n": 2, "max_tokens": 30}
    assert (first.choices, first.output_tokens_max) == (2, 30)
    second = with_defaults_of(entry(top_p=0.5, n=3, max_completion_tokens=90), first)
    assert second.body == {**request.body, "top_p": 0.5, "n": 3, "max_completion_tokens": 90}
    assert (second.choices, second.output_tokens_max) == (3, 90)
    third = with_defaults_of(entry(), second)
    assert (third.body, third.choices, third.output_tokens_max) == (request.body, 1, None)


def test_what_was_changed_of_the_body_meanwhile_stays_changed() -> None:
    first = with_defaults_of(entry(temperature=0.1), chat())
    compressed = replace(first, body={**first.body, "messages": ["short"]})
    assert with_defaults_of(entry(), compressed).body == {"model": "m", "messages": ["short"]}


@pytest.mark.parametrize(("next_cap", "left"), [(None, 10), (90, 10), (5, 5)])
def test_a_cap_that_a_budget_has_cut_is_never_loosened(next_cap: int | None, left: int) -> None:
    cut = replace(with_defaults_of(entry(max_tokens=30), chat()), output_tokens_max=10)
    assert with_defaults_of(entry(max_tokens=next_cap), cut).output_tokens_max == left


def test_answers_of_an_entry_are_held_for_each_prompt() -> None:
    request = CompletionsProtocol().parse(b'{"model": "m", "prompt": ["a", "b"]}')
    added = with_defaults_of(entry(n=3, max_tokens=50), request)
    assert (added.choices, added.output_tokens_max) == (6, 50)
    assert (with_defaults_of(entry(), added).choices, with_defaults_of(entry(), added).output_tokens_max) == (2, 16)
