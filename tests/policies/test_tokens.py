"""The rules of each protocol, with one character counted as one token so that every constant shows."""

from typing import Any

import pytest

from policies.tokens import (
    Counting,
    Family,
    PromptCount,
    count_chat,
    count_completion,
    count_embeddings,
    count_messages,
    count_responses,
    counting_for,
    with_history,
)
from policies.tokens.prompt import Cost, prompt_count, with_cjk_factor

GPT_4O, GPT_5, CLAUDE = counting_for("gpt-4o"), counting_for("gpt-5"), counting_for("claude-sonnet-4-5")
ALL_RULES = (count_chat, count_responses, count_messages, count_completion, count_embeddings)


@pytest.mark.parametrize(
    ("model", "provider", "encoding", "factor_percent", "family"),
    [
        ("gpt-4o-mini-2024-07-18", None, "o200k_base", 100, Family.GPT_4),
        ("openai/gpt-4o", None, "o200k_base", 100, Family.GPT_4),
        ("openrouter/openai/gpt-5-mini", None, "o200k_base", 100, Family.GPT_5),
        ("ft:gpt-4o:acme::x1", None, "o200k_base", 100, Family.GPT_4),
        ("gpt-4-0613", None, "cl100k_base", 100, Family.GPT_4),
        ("gpt-4.1-nano", None, "o200k_base", 100, Family.GPT_4),
        ("azure/gpt-35-turbo", None, "cl100k_base", 100, Family.GPT_4),
        ("text-embedding-3-small", None, "cl100k_base", 100, Family.GPT_4),
        ("gpt-7-turbo", None, "o200k_base", 100, Family.GPT_5),
        ("o3-mini", None, "o200k_base", 100, Family.O_SERIES),
        ("claude-3-7-sonnet-20250219", None, "o200k_base", 135, Family.OTHER),
        ("us.anthropic.claude-sonnet-4-20250514-v1:0", "bedrock", "o200k_base", 135, Family.OTHER),
        ("anthropic/claude-sonnet-4.6", None, "o200k_base", 135, Family.OTHER),
        ("claude-opus-4-7", None, "o200k_base", 175, Family.OTHER),
        ("anthropic/claude-opus-5", None, "o200k_base", 175, Family.OTHER),
        ("claude-unheard-of", None, "o200k_base", 175, Family.OTHER),
        ("anthropic.claude-v2", None, "o200k_base", 135, Family.OTHER),
        ("gemini/gemini-2.5-flash", None, "o200k_base", 105, Family.OTHER),
        ("groq/deepseek-r1-distill-llama-70b", None, "o200k_base", 105, Family.OTHER),
        ("openai/gpt-oss-120b", None, "o200k_base", 105, Family.OTHER),
        ("my-deployment", "openai", "o200k_base", 100, Family.GPT_5),
        ("my-deployment", None, "o200k_base", 135, Family.OTHER),
        ("", None, "o200k_base", 135, Family.OTHER),
    ],
)
def test_model_and_provider_select_encoding_factor_and_family(
    model: str, provider: str | None, encoding: str, factor_percent: int, family: Family
) -> None:
    counting = counting_for(model, provider)
    assert (counting.encoding, counting.factor_percent, counting.family) == (encoding, factor_percent, family)
    assert counting.exact == (factor_percent == 100)


@pytest.mark.parametrize(
    ("cost", "counting", "has_tools", "expected"),
    [
        (Cost(text=0), GPT_4O, False, PromptCount(0, 8, exact=True)),
        (Cost(text=1000), GPT_4O, False, PromptCount(1000, 1018, exact=True)),
        (Cost(text=1001), GPT_4O, True, PromptCount(1001, 1020, exact=True)),
        (Cost(text=100, media=50, spare=40), GPT_4O, False, PromptCount(150, 200, exact=False)),
        (Cost(text=100), CLAUDE, False, PromptCount(175, 175, exact=False)),
        (Cost(text=100, media=30, spare=5), CLAUDE, True, PromptCount(1005, 1010, exact=False)),
    ],
)
def test_reserve_tokens_are_the_count_plus_a_margin(
    cost: Cost, counting: Counting, has_tools: bool, expected: PromptCount
) -> None:
    assert prompt_count(cost, counting, has_tools=has_tools) == expected


@pytest.mark.parametrize(
    ("model", "counted", "booked"),
    [
        ("gpt-4o", 99, 99),
        ("gpt-4o", 101, 101),  # our count is the model's own: the provider has written above its cap
        ("claude-sonnet-4", 99, 99),
        ("claude-sonnet-4", 135, 100),  # may be 100 tokens, because the factor is 1.35
        ("claude-sonnet-4", 136, 136),
    ],
)
def test_output_without_reported_usage_is_booked_within_its_hold_if_it_may_have_kept_to_it(
    model: str, counted: int, booked: int
) -> None:
    assert counting_for(model, "").booked_output(counted, held_tokens=100) == booked


def message(role: str, content: Any = "", **fields: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **fields}


def call(name: str, arguments: str = "{}", call_id: str = "c1") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize(
    ("messages", "gpt_4o", "gpt_5"),
    [
        ([], 3, 2),
        ([message("user", "hello")], 3 + 3 + 4 + 5, 2 + 3 + 4 + 5),
        ([message("user", "hello", name="ann")], 3 + 12 + 4, 2 + 12 + 4),
        ([message("user", [{"type": "text", "text": "ab"}, {"type": "text", "text": "c"}])], 3 + 10, 2 + 10),
        ([message("user", None)], 3 + 7, 2 + 7),
        ([message("function", "{}", name="f")], 3 + 3 + 8 + 2 + 0, 2 + 3 + 8 + 2 + 0),
        ([message("assistant", None, tool_calls=[call("add")])], 3 + 12 + 1 + len("functions.add{}"), 2 + 12 + 4 + 5),
        (
            [message("assistant", None, tool_calls=[call("add"), call("sub", call_id="c2")])],
            3 + 12 + 1 + len('{"tool_uses":[,]}') + 2 * len('{"recipient_name":"functions.add","parameters":{}}'),
            2 + 12 + 21 + 10,
        ),
        (
            [message("assistant", None, tool_calls=[call("add")]), message("tool", "7", tool_call_id="c1")],
            3 + 12 + 16 + 3 + 4 + 1 + 3 + 3,
            2 + 12 + 9 + 3 + 4 + 1 + 5 + 6,
        ),
        ([message("tool", "7", tool_call_id="unknown")], 3 + 8 + 3, 2 + 8 + 5),
    ],
)
def test_chat_messages_cost_text_plus_framing_tokens(messages: list[Any], gpt_4o: int, gpt_5: int) -> None:
    body = {"messages": messages}
    assert count_chat(body, GPT_4O, len).tokens == gpt_4o
    assert count_chat(body, GPT_5, len).tokens == gpt_5


FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": FUNCTION}]
RENDERED = len("namespace functions {\n\n// d\ntype f = () => any;\n\n} // namespace functions")


@pytest.mark.parametrize(
    ("fields", "messages", "extra"),
    [
        ({"tools": TOOLS}, [message("user")], RENDERED + 9),
        ({"functions": [FUNCTION]}, [message("user")], RENDERED + 9),
        # A system message takes 4 back and gets a newline (counted as one here).
        ({"tools": TOOLS}, [message("system", "s")], RENDERED + 9 - 4 + 1),
        ({"tools": TOOLS}, [message("system", "s"), message("system", "s")], RENDERED + 9 - 4 + 1),
        ({"tools": TOOLS, "tool_choice": "none"}, [message("user")], RENDERED + 9 + 1),
        ({"tools": TOOLS, "tool_choice": "required"}, [message("user")], RENDERED + 9),
        ({"tools": TOOLS, "tool_choice": {"function": {"name": "f"}}}, [message("user")], RENDERED + 9 + 8),
        ({"functions": [FUNCTION], "function_call": {"name": "f"}}, [message("user")], RENDERED + 9 + 5),
        ({"response_format": {"type": "json_object"}}, [message("user")], 0),
        ({"response_format": {"json_schema": {"schema": {"a": 1}}}}, [message("user")], 7 + 8),
    ],
)
def test_tools_and_response_formats_cost_their_rendered_text(
    fields: dict[str, Any], messages: list[Any], extra: int
) -> None:
    bare = count_chat({"messages": messages}, GPT_4O, len).tokens
    assert count_chat({"messages": messages, **fields}, GPT_4O, len).tokens - bare == extra


def test_gpt_5_tool_preamble_counts_in_chat_and_not_in_responses() -> None:
    chat = {"messages": [message("system", "s")], "tools": TOOLS, "tool_choice": {"function": {"name": "f"}}}
    bare = count_chat({"messages": [message("system", "s")]}, GPT_5, len).tokens
    assert count_chat(chat, GPT_5, len).tokens - bare == RENDERED + 9 + 82

    responses = {"input": "hi", "tools": [{"type": "function", **FUNCTION}]}
    bare = count_responses({"input": "hi"}, GPT_5, len).tokens
    assert count_responses(responses, GPT_5, len).tokens - bare == RENDERED + 9


def test_responses_instructions_and_input_items_count_as_messages() -> None:
    body = {
        "instructions": "be brief",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "hello"}]},
            {"type": "function_call", "call_id": "c1", "name": "add", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "7"},
        ],
    }
    expected = 2 + (4 + 8) + (3 + 4 + 5) + (4 + 4 + 3 + 2) + (4 + 5 + 2 * 3 + 1)
    assert count_responses(body, GPT_5, len) == PromptCount(expected, -(-expected * 101 // 100) + 8, exact=True)


@pytest.mark.parametrize(
    "fields",
    [
        {"previous_response_id": "resp_1"},
        {"reasoning": {"mode": "pro"}},
        {"tools": [{"type": "web_search"}]},
        {"tools": [{"type": "not-yet-invented"}]},
        {"input": [{"type": "reasoning", "encrypted_content": "x" * 400}]},
    ],
)
def test_server_side_content_adds_reserve_and_makes_the_count_inexact(fields: dict[str, Any]) -> None:
    counted = count_responses({"input": "hi", **fields}, GPT_5, len)
    assert not counted.exact
    assert counted.reserve_tokens >= counted.tokens + 100


@pytest.mark.parametrize(("history", "reserved"), [(0, 0), (3_000, 0), (10_000, 6_100)])
def test_known_history_length_replaces_the_reserve_for_an_unknown_one(history: int, reserved: int) -> None:
    counted = count_responses({"input": "hi", "previous_response_id": "resp_1"}, GPT_5, len)
    known = with_history(counted, history)
    assert (known.tokens, known.reserve_tokens) == (counted.tokens + history, counted.reserve_tokens + reserved)
    assert not known.exact


def test_anthropic_count_includes_system_blocks_tools_and_tool_results() -> None:
    body = {
        "system": [{"type": "text", "text": "s" * 10}],
        "messages": [
            {"role": "user", "content": "u" * 20},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "add", "input": {"a": 1}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "7"}]},
        ],
    }
    text = 10 + (4 + 20) + (4 + 8 + 3 + 7) + (4 + 8 + 1)
    assert count_messages(body, CLAUDE, len).tokens == -(-text * 135 // 100) + 40
    tools = [{"name": "add", "description": "adds", "input_schema": {}}]
    with_tools = count_messages({**body, "tools": tools}, CLAUDE, len).tokens
    assert with_tools > count_messages(body, CLAUDE, len).tokens + 800


@pytest.mark.parametrize(
    ("value", "tokens"),
    [("abc", 3), (["abc", "de"], 5), ([1, 2, 3], 3), ([[1, 2], [3]], 3), (None, 0), ([], 0), ([{"text": "ab"}], 2)],
)
def test_completion_and_embedding_inputs_are_counted_in_every_form(value: Any, tokens: int) -> None:
    counting = counting_for("text-embedding-3-small")
    assert count_embeddings({"input": value}, counting, len).tokens == tokens
    assert count_completion({"prompt": value}, counting, len).tokens == tokens


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("latin text", 10), ("中文中文中文", 8), ("ru: русский язык", 16), ("", 0), ("\ud800\ud800", 3)],
)
def test_cjk_text_is_counted_by_its_own_factor(text: str, tokens: int) -> None:
    # 160 instead of 135 percent: 6 characters weigh 8, which times 1.35 is 10.8.
    assert with_cjk_factor(len, CLAUDE)(text) == tokens


MALFORMED: list[Any] = [None, 7, True, "text", [], {}, [None], [7], ["x"], [[]], [{}], {"type": 3}, [{"type": []}]]
FIELDS = ("messages", "input", "tools", "functions", "tool_choice", "response_format", "instructions", "system", "text")
PARTS = ("content", "tool_calls", "function_call", "name", "output", "source", "parameters", "function", "role", "type")


@pytest.mark.parametrize("rules", ALL_RULES)
@pytest.mark.parametrize("counting", [GPT_4O, GPT_5, CLAUDE])
def test_malformed_requests_are_counted_and_never_raise(rules: Any, counting: Counting) -> None:
    for wrong in MALFORMED:
        for field in FIELDS:
            assert rules({field: wrong}, counting, len).tokens >= 0
        for part in PARTS:
            item = {"role": "assistant", "type": "function", part: wrong}
            body = {"messages": [item], "input": [item], "tools": [item], "system": [item]}
            assert rules(body, counting, len).reserve_tokens >= 0


def test_text_key_in_an_image_part_does_not_lower_its_reserve() -> None:
    picture = {"type": "image_url", "image_url": {"url": "https://x.org/a.png"}}
    for rules, field, counting in (
        (count_chat, "messages", GPT_4O),
        (count_responses, "input", GPT_5),
        (count_chat, "messages", CLAUDE),
    ):
        plain = rules({field: [message("user", [picture])]}, counting, len).reserve_tokens
        hidden = rules({field: [message("user", [{**picture, "text": ""}])]}, counting, len).reserve_tokens
        assert hidden == plain > 500


@pytest.mark.parametrize("counting", [GPT_4O, GPT_5, CLAUDE])
@pytest.mark.parametrize("content", ["x" * 700, [{"type": "text", "text": "x" * 700}]])
def test_predicted_output_is_added_to_the_reserve(counting: Counting, content: Any) -> None:
    body = {"messages": [message("user", "hi")]}
    counted = count_chat({**body, "prediction": {"type": "content", "content": content}}, counting, len)
    plain = count_chat(body, counting, len)
    assert (counted.tokens, counted.reserve_tokens) == (plain.tokens, plain.reserve_tokens + 700)


def test_document_title_and_context_count() -> None:
    def tokens(*content: Any) -> int:
        return count_messages({"messages": [{"role": "user", "content": list(content)}]}, CLAUDE, len).tokens

    source = {"type": "text", "media_type": "text/plain", "data": "d" * 100}
    scanned = {"type": "url", "url": "https://x.org/a.pdf"}
    for document_source in (source, scanned):
        bare = {"type": "document", "source": document_source}
        extra_tokens = tokens({**bare, "title": "t" * 100, "context": "c" * 100}) - tokens(bare)
        assert extra_tokens == 270
    assert tokens("s" * 100) - tokens("") == 135


def test_speech_instructions_count() -> None:
    counting = counting_for("gpt-4o-mini-tts")
    assert count_embeddings({"input": "ab", "instructions": "slowly"}, counting, len).tokens == 8


def test_unknown_content_part_counts_as_its_json() -> None:
    part = {"type": "hologram", "data": "x" * 50}
    counted = count_chat({"messages": [message("user", [part])]}, GPT_4O, len).tokens
    assert counted == 3 + 3 + 4 + len('{"type":"hologram","data":""}') + 50


def test_nesting_beyond_the_recursion_limit_is_counted() -> None:
    deep: Any = "end"
    for _ in range(5_000):
        deep = [deep]
    assert count_chat({"messages": [message("user", {"deep": deep})]}, GPT_4O, len).tokens >= 10_000


def test_cost_of_tools_and_schema_is_taken_from_the_callers_cache() -> None:
    rules_cached: list[str] = []

    def cached_cost(rule: str, value: Any, compute: Any) -> int:
        rules_cached.append(rule)
        return 1_000

    body = {"messages": [], "tools": TOOLS, "response_format": {"json_schema": {"schema": {}}}}
    assert count_chat(body, GPT_4O, len, cached_cost).tokens == 3 + 2_000
    assert rules_cached == ["chat_tools", "json_schema"]
