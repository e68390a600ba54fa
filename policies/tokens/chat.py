"""`/v1/chat/completions`: the tokens of messages, names, tool calls and response formats besides the text itself."""

from collections.abc import Mapping, Sequence
from typing import Any

from policies.tokens.counting import Counting, Family
from policies.tokens.json_text import as_list, as_object, as_text, compact_json
from policies.tokens.media import openai_media_cost
from policies.tokens.prompt import (
    CachedCost,
    Cost,
    CountText,
    PromptCount,
    prompt_count,
    uncached_cost,
    with_cjk_factor,
)
from policies.tokens.tools import chat_tool_tokens, functions_in

_PER_MESSAGE = 3  # <|start|>, <|message|>, <|end|>
_SYSTEM_ROLES = ("system", "developer")
_JSON_SCHEMA = 8  # never too low, at most 55 too high
_WEB_SEARCH_SPARE = 8_000  # search models add the pages they read on the server


def count_chat(
    body: Mapping[str, Any], counting: Counting, count: CountText, cached_cost: CachedCost = uncached_cost
) -> PromptCount:
    """Prompt tokens of a chat request.

    `body` is the decoded request; `messages` must be a list of objects, everything else may be malformed (an unknown part
    counts as its JSON). `cached_cost` lets a caller cache the cost of tools and schemas, which repeat with every call.
    """
    functions = [*functions_in(body.get("tools")), *functions_in(body.get("functions"))]
    predicted = Cost() if body.get("prediction") is None else _predicted_cost(body["prediction"], counting, count)
    if counting.family is Family.OTHER:
        cost = _other_family_cost(body, counting, with_cjk_factor(count, counting), cached_cost)
        return prompt_count(cost + predicted, counting, has_tools=bool(functions))
    messages = as_list(body.get("messages"))
    cost = chat_messages_cost(messages, counting, count, pad_system=bool(functions))
    extra = 2 if counting.family in (Family.GPT_5, Family.O_SERIES) else 3
    if functions:
        tools = [body.get("tools"), body.get("functions")]
        extra += cached_cost("chat_tools", tools, lambda: chat_tool_tokens(functions, counting, count))
        if counting.family is not Family.GPT_5:
            extra += _tool_choice_tokens(body, count) - (4 if _has_system(messages) else 0)
    extra += schema_tokens(as_object(body.get("response_format")).get("json_schema"), count, cached_cost)
    spare = _WEB_SEARCH_SPARE if body.get("web_search_options") is not None else 0
    return prompt_count(cost + predicted + Cost(text=extra, spare=spare), counting, has_tools=bool(functions))


def chat_messages_cost(messages: Sequence[Any], counting: Counting, count: CountText, *, pad_system: bool) -> Cost:
    """Cost of a list of chat messages for OpenAI's models.

    `pad_system`: with functions, the first system message gets a newline at its end (not with GPT-5).
    """
    gpt_5 = counting.family is Family.GPT_5
    tokens, other, padded = 0, Cost(), gpt_5 or not pad_system
    called: dict[str, str] = {}
    for message in messages:
        if not isinstance(message, dict):
            continue
        role, content, name = message.get("role"), message.get("content"), message.get("name")
        tokens += _PER_MESSAGE + count(role if isinstance(role, str) else "")
        if isinstance(content, str):
            if not padded and content and role in _SYSTEM_ROLES:
                content, padded = content + "\n", True
            tokens += count(content)
        elif content is not None:
            other += parts_cost(content, counting, count)
        if isinstance(name, str) and name:
            tokens += count(name) + (-1 if role == "function" else 1)
        if role == "tool":
            tokens += _tool_result_tokens(called.get(as_text(message.get("tool_call_id")), ""), gpt_5, count)
        elif role == "assistant":
            tokens += _assistant_tokens(message, gpt_5, count, called)
    return other + Cost(text=tokens)


def parts_cost(content: Any, counting: Counting, count: CountText) -> Cost:
    """Cost of content that is not a plain string: a list of parts, or whatever else a client sent."""
    if not isinstance(content, list):
        return Cost(text=count(compact_json(content)))
    cost = Cost()
    for part in content:
        cost += _part_cost(part, counting, count)
    return cost


def schema_tokens(json_schema: Any, count: CountText, cached_cost: CachedCost) -> int:
    """Tokens of a response format's JSON schema (the object that holds `schema`); 0 for any other format."""
    schema = as_object(json_schema).get("schema")
    if schema is None:
        return 0
    return cached_cost("json_schema", schema, lambda: count(compact_json(schema)) + _JSON_SCHEMA)


def call_tokens(calls: Sequence[tuple[str, str]], gpt_5: bool, count: CountText) -> int:
    """The cost of an assistant message's function calls, given as (name, arguments).

    GPT-4's models see several calls as one call of `multi_tool_use.parallel`, with this JSON as its arguments.
    """
    if not calls:
        return 0
    if gpt_5:
        # Each call is a separate message; 5 + 8 k bounds the observed counts (4 for one).
        headers = 4 if len(calls) == 1 else 5 + 8 * len(calls)
        return headers + sum(count(name) + count(arguments) for name, arguments in calls)
    if len(calls) == 1:
        return 1 + count(f"functions.{calls[0][0]}") + count(calls[0][1])
    uses = ",".join(f'{{"recipient_name":"functions.{name}","parameters":{arguments}}}' for name, arguments in calls)
    return 1 + count(f'{{"tool_uses":[{uses}]}}')


def _predicted_cost(prediction: Any, counting: Counting, count: CountText) -> Cost:
    """Predicted tokens that the answer does not use are billed with it, even beyond its cap."""
    content = as_object(prediction).get("content")
    expected = Cost(text=count(content)) if isinstance(content, str) else parts_cost(content, counting, count)
    return Cost(spare=expected.text + expected.media + expected.spare)


def _part_cost(part: Any, counting: Counting, count: CountText) -> Cost:
    if isinstance(part, str):
        return Cost(text=count(part))
    fields = as_object(part)
    text = fields.get("text", fields.get("refusal"))
    text_cost = Cost(text=count(text)) if isinstance(text, str) else None
    kind = fields.get("type")
    if text_cost is not None and kind == "text":
        return text_cost
    # Media that also have a text cost both.
    media = openai_media_cost(as_text(kind), fields, counting)
    if media is not None:
        return media if text_cost is None else media + text_cost
    return Cost(text=count(compact_json(part))) if text_cost is None else text_cost


def _assistant_tokens(message: Mapping[str, Any], gpt_5: bool, count: CountText, called: dict[str, str]) -> int:
    calls = []
    for call in as_list(message.get("tool_calls")):
        function = as_object(as_object(call).get("function") or as_object(call).get("custom"))
        name, arguments = as_text(function.get("name")), as_text(function.get("arguments", function.get("input")))
        calls.append((name, arguments))
        called[as_text(as_object(call).get("id"))] = name
    tokens = call_tokens(calls, gpt_5, count)
    legacy = as_object(message.get("function_call"))
    if legacy:
        tokens += 3 + count(as_text(legacy.get("name"))) + count(as_text(legacy.get("arguments")))
    if isinstance(message.get("refusal"), str):
        tokens += count(message["refusal"])
    return tokens


def _tool_result_tokens(name: str, gpt_5: bool, count: CountText) -> int:
    # A result begins with the name of the called function.
    return 5 + 2 * count(name) if gpt_5 else 3 + count(name)


def _tool_choice_tokens(body: Mapping[str, Any], count: CountText) -> int:
    choice = body.get("tool_choice", body.get("function_call"))
    if choice == "none":
        return 1
    if not isinstance(choice, dict):
        return 0
    if "function" in choice:
        return 7 + count(as_text(as_object(choice["function"]).get("name")))
    return 4 + count(as_text(choice.get("name")))


def _has_system(messages: Sequence[Any]) -> bool:
    return any(isinstance(message, dict) and message.get("role") in _SYSTEM_ROLES for message in messages)


def _other_family_cost(body: Mapping[str, Any], counting: Counting, count: CountText, cached_cost: CachedCost) -> Cost:
    # For models that are not OpenAI's: all their text plus 4 per message, with tools and schemas as JSON.
    tokens, other = 0, Cost()
    for message in as_list(body.get("messages")):
        if not isinstance(message, dict):
            continue
        content = message.get("content")
        tokens += 4
        if isinstance(content, str):
            tokens += count(content)
        elif content is not None:
            other += parts_cost(content, counting, count)
        for field in ("name", "tool_calls", "function_call", "reasoning_content", "reasoning"):
            if message.get(field):
                tokens += count(as_text(message[field]))
    repeated = [body[field] for field in ("tools", "functions", "response_format") if body.get(field)]
    if repeated:
        tokens += cached_cost("chat_json", repeated, lambda: count(compact_json(repeated)))
    return other + Cost(text=tokens)
