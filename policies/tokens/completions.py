"""Requests without messages: legacy completions, embeddings, moderations, reranking. Only their text counts."""

from collections.abc import Mapping
from typing import Any

from policies.tokens.counting import Counting
from policies.tokens.json_text import as_object, as_text, compact_json
from policies.tokens.prompt import (
    CachedCost,
    Cost,
    CountText,
    PromptCount,
    prompt_count,
    uncached_cost,
    with_cjk_factor,
)

_INPUT_FIELDS = ("prompt", "suffix", "input", "instructions", "query", "documents")


def count_completion(
    body: Mapping[str, Any], counting: Counting, count: CountText, cached_cost: CachedCost = uncached_cost
) -> PromptCount:
    """Prompt tokens of `/v1/completions`: a text, texts, a list of token ids, or lists of them."""
    return _count_fields(body, counting, count)


def count_embeddings(
    body: Mapping[str, Any], counting: Counting, count: CountText, cached_cost: CachedCost = uncached_cost
) -> PromptCount:
    """Prompt tokens of `/v1/embeddings`, and of moderations (`input`), speech (with `instructions`) and rerankers (`query`
    and `documents`)."""
    return _count_fields(body, counting, count)


def _count_fields(body: Mapping[str, Any], counting: Counting, count: CountText) -> PromptCount:
    count = with_cjk_factor(count, counting)
    tokens = sum(_input_tokens(body[field], count) for field in _INPUT_FIELDS if field in body)
    return prompt_count(Cost(text=tokens), counting, has_tools=False)


def _input_tokens(value: Any, count: CountText) -> int:
    if isinstance(value, str):
        return count(value)
    if isinstance(value, bool) or value is None:
        return 0
    if isinstance(value, int):
        return 1  # a token id
    if isinstance(value, list):
        return sum(_input_tokens(item, count) for item in value)
    text = as_object(value).get("text")
    return count(text) if isinstance(text, str) else count(as_text(compact_json(value)))
