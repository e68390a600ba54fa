"""`/v1/messages`, Anthropic's protocol: content blocks, a separate system prompt, tools as JSON schemas."""

from collections.abc import Mapping
from typing import Any

from policies.tokens.counting import Counting, Family
from policies.tokens.json_text import as_list, as_object, as_text, compact_json
from policies.tokens.media import document_cost, image_cost
from policies.tokens.prompt import (
    CachedCost,
    Cost,
    CountText,
    PromptCount,
    prompt_count,
    uncached_cost,
    with_cjk_factor,
)

_PER_MESSAGE = 4
_PER_BLOCK = 8  # the wrapping of a tool's call or result
_COMPACTION = 40  # the frame around the summary of a compacted history; counts were 28 too low without it
_OPENAI_TOOLS = 91  # the namespace and instructions of functions, if an OpenAI model answers
_SERVER_TOOL = Cost(media=500, spare=12_000)  # searches and code run on the server and bill what they read


def count_messages(
    body: Mapping[str, Any], counting: Counting, count: CountText, cached_cost: CachedCost = uncached_cost
) -> PromptCount:
    """Prompt tokens of a Messages request, never exact: Claude's tokenizer is not public."""
    count = with_cjk_factor(count, counting)
    cost = _content_cost(body.get("system"), counting, count)
    for message in as_list(body.get("messages")):
        cost += Cost(text=_PER_MESSAGE) + _content_cost(as_object(message).get("content"), counting, count)
    tools = as_list(body.get("tools"))
    if tools:
        cost += Cost(text=cached_cost("messages_tools", tools, lambda: count(compact_json(tools))))
        cost += Cost(text=0 if counting.family is Family.OTHER else _OPENAI_TOOLS)
    for tool in tools:
        if "input_schema" not in as_object(tool):
            cost += _SERVER_TOOL
    counted = prompt_count(cost, counting, has_tools=bool(tools))
    return PromptCount(counted.tokens, counted.reserve_tokens, exact=False)


def _content_cost(content: Any, counting: Counting, count: CountText) -> Cost:
    if isinstance(content, str):
        return Cost(text=count(content))
    if content is None:
        return Cost()
    if not isinstance(content, list):
        return Cost(text=count(compact_json(content)))
    cost = Cost()
    for block in content:
        cost += Cost(text=count(block)) if isinstance(block, str) else _block_cost(as_object(block), counting, count)
    return cost


def _block_cost(block: Mapping[str, Any], counting: Counting, count: CountText) -> Cost:
    kind = block.get("type")
    source = as_object(block.get("source"))
    if kind == "text" and isinstance(block.get("text"), str):
        return Cost(text=count(block["text"]))
    if kind == "image":
        return image_cost(as_text(source.get("data") or source.get("url")), None, counting)
    if kind == "document":
        description_cost = Cost(text=count(as_text(block.get("title"))) + count(as_text(block.get("context"))))
        if source.get("type") in ("base64", "url", "file"):
            return description_cost + document_cost(as_text(source.get("data")) or None)
        return description_cost + _content_cost(source.get("data") or source.get("content"), counting, count)
    if kind == "tool_result":
        return Cost(text=_PER_BLOCK) + _content_cost(block.get("content"), counting, count)
    if kind == "tool_use":
        call = count(as_text(block.get("name"))) + count(compact_json(block.get("input")))
        return Cost(text=_PER_BLOCK + call)
    if kind == "compaction":
        return Cost(text=_COMPACTION) + _content_cost(block.get("content"), counting, count)
    if kind == "thinking" and isinstance(block.get("thinking"), str):
        return Cost(text=count(block["thinking"]))
    if kind == "redacted_thinking":
        return Cost(spare=len(as_text(block.get("data"))) // 4)
    return Cost(text=count(compact_json(block)))
