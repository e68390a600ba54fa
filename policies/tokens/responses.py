"""`/v1/responses`: items instead of messages, instructions instead of a system message, and tools that OpenAI runs."""

from collections.abc import Mapping, Sequence
from typing import Any

from policies.tokens.chat import call_tokens, parts_cost, schema_tokens
from policies.tokens.counting import Counting, Family
from policies.tokens.json_text import as_list, as_object, as_text, compact_json
from policies.tokens.prompt import (
    CachedCost,
    Cost,
    CountText,
    PromptCount,
    prompt_count,
    uncached_cost,
    with_cjk_factor,
)
from policies.tokens.tools import functions_in, responses_tool_tokens

_PER_MESSAGE = 3
_ADDITIONAL_TOOLS = 86  # measured: 82 to 85, for the message that announces functions in mid-conversation

# What OpenAI's own tools add for their instructions (expected) and may add for what they read (spare). They loop on the
# server and bill every round, so no bound is certain: one web search cost between 330 and 116,000 tokens.
_SERVER_TOOLS = {
    "tool_search": Cost(media=350, spare=350),
    "code_interpreter": Cost(media=1_300, spare=2_700),
    "image_generation": Cost(media=300, spare=2_600),
    "file_search": Cost(media=850, spare=750),
    "mcp": Cost(media=400, spare=1_200),
    "web_search": Cost(media=300, spare=12_000),
    "web_search_preview": Cost(media=300, spare=12_000),
}
_UNKNOWN_TOOL = Cost(media=500, spare=1_500)
_PRO_MODE = Cost(spare=4_000)  # several answers are drafted and read again: 1,530 for a prompt of 18
_STORED_HISTORY = Cost(spare=4_000)  # `previous_response_id`, `conversation`: only OpenAI knows their length


def count_responses(
    body: Mapping[str, Any], counting: Counting, count: CountText, cached_cost: CachedCost = uncached_cost
) -> PromptCount:
    """Prompt tokens of a Responses request.

    Not exact, and with a spare, if the count depends on the server: on its own tools, or on a stored history.
    """
    tools = as_list(body.get("tools"))
    functions = functions_in([tool for tool in tools if as_object(tool).get("type") in ("function", "custom")])
    if counting.family is Family.OTHER:
        count = with_cjk_factor(count, counting)
    cost = _input_cost(body.get("input"), counting, count) + _server_cost(body, tools, count)
    tokens = 2 if counting.family in (Family.GPT_5, Family.O_SERIES) else 3
    instructions = body.get("instructions")
    if isinstance(instructions, str) and instructions:
        pad = "\n" if functions and counting.family is Family.GPT_4 else ""
        tokens += _PER_MESSAGE + 1 + count(instructions + pad)
    if functions:
        tokens += cached_cost("responses_tools", tools, lambda: _function_tokens(functions, counting, count))
        tokens += _tool_choice_tokens(body.get("tool_choice"), counting, count)
    tokens += schema_tokens(as_object(body.get("text")).get("format"), count, cached_cost)
    return prompt_count(cost + Cost(text=tokens), counting, has_tools=bool(functions))


def with_history(count: PromptCount, history_tokens: int) -> PromptCount:
    """The count of a request that continues a stored history of so many tokens. The spare for histories of unknown length is
    included in them.
    """
    extra_tokens = -(-history_tokens * 101 // 100) - _STORED_HISTORY.spare
    return PromptCount(count.tokens + history_tokens, count.reserve_tokens + max(0, extra_tokens), exact=False)


def _function_tokens(functions: Sequence[Mapping[str, Any]], counting: Counting, count: CountText) -> int:
    if counting.family is Family.OTHER:
        return count(compact_json(list(functions)))
    return responses_tool_tokens(functions, counting, count)


def _tool_choice_tokens(choice: Any, counting: Counting, count: CountText) -> int:
    if counting.family is Family.GPT_5 or not isinstance(choice, dict):
        return 0
    return 8 + count(as_text(choice.get("name")))


def _input_cost(items: Any, counting: Counting, count: CountText) -> Cost:
    if isinstance(items, str):
        return Cost(text=_PER_MESSAGE + count("user") + count(items))
    gpt_5 = counting.family is Family.GPT_5
    cost, calls = Cost(), _OpenCalls()
    for item in as_list(items):
        fields = as_object(item)
        kind = as_text(fields.get("type") or "message")
        if kind in ("function_call", "custom_tool_call"):
            calls.add(fields)
            continue
        cost += Cost(text=calls.close(gpt_5, count)) + _item_cost(kind, fields, calls, counting, count)
    return cost + Cost(text=calls.close(gpt_5, count))


class _OpenCalls:
    """Adjacent function calls form one message; their names begin the results that follow."""

    def __init__(self) -> None:
        self._open: list[tuple[str, str]] = []
        self.name_of: dict[str, str] = {}

    def add(self, item: Mapping[str, Any]) -> None:
        name, namespace = as_text(item.get("name")), as_text(item.get("namespace"))
        name = f"{namespace}.{name}" if namespace else name
        self._open.append((name, as_text(item.get("arguments", item.get("input")))))
        self.name_of[as_text(item.get("call_id"))] = name

    def close(self, gpt_5: bool, count: CountText) -> int:
        calls, self._open = self._open, []
        return _PER_MESSAGE + 1 + call_tokens(calls, gpt_5, count) if calls else 0


def _item_cost(kind: str, item: Mapping[str, Any], calls: _OpenCalls, counting: Counting, count: CountText) -> Cost:
    if kind == "message":
        head = _PER_MESSAGE + count(as_text(item.get("role")))
        return Cost(text=head) + _content_cost(item.get("content"), counting, count)
    if kind.endswith("_call_output"):
        name = count(calls.name_of.get(as_text(item.get("call_id")), ""))
        head = _PER_MESSAGE + 1 + (5 + 2 * name if counting.family is Family.GPT_5 else 3 + name)
        return Cost(text=head) + _content_cost(item.get("output"), counting, count)
    if kind == "reasoning":
        return _reasoning_cost(item, count)
    if kind == "additional_tools":
        return Cost(text=_ADDITIONAL_TOOLS + _function_tokens(functions_in(item.get("tools")), counting, count))
    return Cost(text=_PER_MESSAGE + 1 + count(compact_json(item)))


def _content_cost(content: Any, counting: Counting, count: CountText) -> Cost:
    if isinstance(content, str):
        return Cost(text=count(content))
    # A screenshot is a single object; other results are lists of parts.
    parts = [content] if isinstance(content, dict) else content
    return Cost() if content is None else parts_cost(parts, counting, count)


def _reasoning_cost(item: Mapping[str, Any], count: CountText) -> Cost:
    # The summary is for people and is not sent to the model. The reasoning itself comes back encrypted, and the server drops
    # all but the newest; four base64 characters are at least a token.
    return Cost(spare=len(as_text(item.get("encrypted_content"))) // 4)


def _server_cost(body: Mapping[str, Any], tools: Sequence[Any], count: CountText) -> Cost:
    cost = Cost()
    for tool in tools:
        kind = as_text(as_object(tool).get("type"))
        if kind not in ("function", "custom"):
            text = count(compact_json(tool))
            cost += _SERVER_TOOLS.get(kind, _UNKNOWN_TOOL) + Cost(text=text)
    if body.get("previous_response_id") or body.get("conversation") or body.get("prompt"):
        cost += _STORED_HISTORY
    if as_object(body.get("reasoning")).get("mode") == "pro":
        cost += _PRO_MODE
    return cost
