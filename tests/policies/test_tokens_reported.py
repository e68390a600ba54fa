"""Recorded requests and the prompt tokens that the providers' APIs reported for them."""

import base64
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.tokenizer_tables import build_encoding
from policies.tokens import PromptCount, count_chat, count_messages, count_responses, counting_for

DATA = Path(__file__).parent / "data" / "token_cases.json"
ROOT = Path(__file__).parents[2]
REFERENCE = Path(os.environ.get("FAREBOX_REFERENCE", ROOT.parent / "shared" / "reference")) / "tokens"

# OpenAI bills what its own tools read, and what a web search reads is unbounded.
UNBOUNDED_TOOLS = {"web_search", "web_search_preview"}
# Recorded in March 2025, when Responses billed 60 to 220 tokens more than in later recordings of similar requests.
NOT_DERIVABLE = (
    "test_openai_responses_model_retry",
    "test_openai_responses_output_type",
    "test_openai_responses_stream.yaml",
    "test_openai_responses_reasoning_effort",
)

Count = Callable[[str], int]


@pytest.fixture(scope="module")
def counts() -> dict[str, Count]:
    def counter(name: str) -> Count:
        encoding = build_encoding(name)
        return lambda text: len(encoding.encode_ordinary(text))

    return {name: counter(name) for name in ("o200k_base", "cl100k_base")}


def counted(protocol: str, model: str, request: dict[str, Any], counts: dict[str, Count]) -> PromptCount:
    counting = counting_for(model)
    rules = count_chat if protocol == "chat" else count_responses
    return rules(request, counting, counts[counting.encoding])


@pytest.mark.parametrize("case", json.loads(DATA.read_text()), ids=lambda case: str(case["id"]))
def test_recorded_request_has_its_known_count_and_a_sufficient_reserve(
    case: dict[str, Any], counts: dict[str, Count]
) -> None:
    count = counted(case["protocol"], case["model"], case["request"], counts)
    assert count.tokens - case["reported_tokens"] == case["off_by"]
    assert count.reserve_tokens >= case["reported_tokens"]


def _reference(name: str) -> list[dict[str, Any]]:
    path = REFERENCE / name
    if not path.is_file():
        pytest.skip(f"the recorded requests {name} are not here: set FAREBOX_REFERENCE to the folder above tokens/")
    cases: list[dict[str, Any]] = json.loads(path.read_text())
    return cases


def _inline_png(width: int, height: int) -> str:
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIB", 13, b"IHDR", width, height, 8)
    return "data:image/png;base64," + base64.b64encode(header + bytes(8)).decode()


def _with_media(request: dict[str, Any], media: list[dict[str, Any]]) -> dict[str, Any]:
    # The recordings hold the dimensions of their media in place of the bytes.
    left = list(media)
    for message in request["messages"]:
        for part in message["content"] if isinstance(message.get("content"), list) else []:
            if part["type"] == "text":
                continue
            medium = left.pop(0)
            if part["type"] == "image_url" and part["image_url"]["url"].startswith("data:omitted"):
                part["image_url"]["url"] = _inline_png(medium["width"], medium["height"])
            elif part["type"] == "file" and medium.get("b64_len"):
                part["file"]["file_data"] = "A" * medium["b64_len"]
            elif part["type"] == "input_audio":
                part["input_audio"]["data"] = "A" * medium["b64_len"]
    return request


def test_no_chat_request_is_reserved_below_its_billed_tokens(counts: dict[str, Count]) -> None:
    exact, text_cases, under = 0, 0, []
    for case in _reference("chat.json"):
        count = counted("chat", case["model"], _with_media(case["request"], case.get("media", [])), counts)
        if count.reserve_tokens < case["prompt_tokens"]:
            under.append((case["id"], case["prompt_tokens"], count))
        if "media" not in case:
            text_cases += 1
            exact += count.tokens == case["prompt_tokens"]
    assert under == []
    assert exact / text_cases >= 0.85


def test_no_responses_request_is_reserved_below_its_billed_tokens(counts: dict[str, Count]) -> None:
    under = []
    for case in _reference("responses.json"):
        tools = {tool["type"] for tool in case["request"].get("tools") or []}
        if tools & UNBOUNDED_TOOLS or any(name in case["source"] for name in NOT_DERIVABLE):
            continue
        count = counted("responses", case["model"], case["request"], counts)
        if count.reserve_tokens < case["input_tokens"]:
            under.append((case["source"], case["input_tokens"], count))
    assert under == []


SERVER_SIDE = ("compound",)  # models that search and run code on their own
MEDIA = ("image_url", "document_url", "input_audio", "video", '"image"', '"document"', '"file')
OTHER_PROVIDERS = ("anthropic", "mistral", "groq", "cerebras", "deepseek", "huggingface", "crusoecloud", "z")


@pytest.mark.parametrize("provider", OTHER_PROVIDERS)
def test_no_request_to_another_provider_is_reserved_below_its_billed_tokens(
    provider: str, counts: dict[str, Count]
) -> None:
    under, checked = [], 0
    for case in _reference("other.json"):
        request = case.get("request")
        if case["provider"] != provider or request is None or any(word in case["model"] for word in SERVER_SIDE):
            continue
        functions_only = all("function" in tool or "input_schema" in tool for tool in request.get("tools") or [])
        if not functions_only or any(word in json.dumps(request) for word in MEDIA):
            continue
        checked += 1
        rules = count_messages if provider == "anthropic" else count_chat
        count = rules(request, counting_for(case["model"], provider), counts["o200k_base"])
        if count.reserve_tokens < case["input_tokens"]:
            under.append((case["model"], case["input_tokens"], count))
    assert under == []
    assert checked > 0
