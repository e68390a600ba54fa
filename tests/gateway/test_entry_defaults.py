"""Which default fields a request gets when several deployments are tried in turn."""

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


def test_entry_without_new_fields_returns_the_same_request() -> None:
    request = chat(temperature=1)
    assert with_defaults_of(entry(api_base="https://x", temperature=0), request) is request


def test_client_fields_win_and_each_entry_replaces_the_previous_defaults() -> None:
    request = chat(seed=7)
    first = with_defaults_of(entry(seed=1, temperature=0.1, n=2, max_tokens=30), request)
    assert first.body == {**request.body, "temperature": 0.1, "n": 2, "max_tokens": 30}
    assert (first.choices, first.output_tokens_max) == (2, 30)
    second = with_defaults_of(entry(top_p=0.5, n=3, max_completion_tokens=90), first)
    assert second.body == {**request.body, "top_p": 0.5, "n": 3, "max_completion_tokens": 90}
    assert (second.choices, second.output_tokens_max) == (3, 90)
    third = with_defaults_of(entry(), second)
    assert (third.body, third.choices, third.output_tokens_max) == (request.body, 1, None)


def test_compressed_messages_survive_a_change_of_entry() -> None:
    first = with_defaults_of(entry(temperature=0.1), chat())
    compressed = replace(first, body={**first.body, "messages": ["short"]})
    assert with_defaults_of(entry(), compressed).body == {"model": "m", "messages": ["short"]}


@pytest.mark.parametrize(("next_cap", "left"), [(None, 10), (90, 10), (5, 5)])
def test_output_cap_lowered_by_a_budget_is_never_raised_by_an_entry(next_cap: int | None, left: int) -> None:
    cut = replace(with_defaults_of(entry(max_tokens=30), chat()), output_tokens_max=10)
    assert with_defaults_of(entry(max_tokens=next_cap), cut).output_tokens_max == left


def test_choices_of_an_entry_are_multiplied_by_the_number_of_prompts() -> None:
    request = CompletionsProtocol().parse(b'{"model": "m", "prompt": ["a", "b"]}')
    added = with_defaults_of(entry(n=3, max_tokens=50), request)
    assert (added.choices, added.output_tokens_max) == (6, 50)
    assert (with_defaults_of(entry(), added).choices, with_defaults_of(entry(), added).output_tokens_max) == (2, 16)
