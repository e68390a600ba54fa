"""Counting with the real tables: any text, without network or stalls, and with a cache that makes growing histories cheap."""

import asyncio
import gzip
import socket
import sys
import threading
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

import gateway.tokenizer as tokenizer_module
import gateway.tokenizer_tables as tables
from gateway.tokenizer import OutputCounter, Tokenizer
from policies.tokens import PromptCount

ENCODINGS = ("o200k_base", "cl100k_base")


@pytest.fixture(scope="module")
def encodings() -> dict[str, Any]:
    return {name: tables.build_encoding(name) for name in ENCODINGS}


@pytest.fixture(scope="module")
def counters(encodings: dict[str, Any]) -> dict[str, Any]:
    return {name: tables.TiktokenCounter(encoding) for name, encoding in encodings.items()}


@pytest.fixture
async def tokenizer(counters: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Tokenizer]:
    monkeypatch.setattr(tokenizer_module, "build_counter", counters.__getitem__)
    tokenizer = Tokenizer()
    await tokenizer.load(*ENCODINGS)
    yield tokenizer
    tokenizer.close()


def chat(*contents: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content} for content in contents], **fields}


@pytest.mark.parametrize(
    ("encoding", "text", "ids"),
    [
        ("o200k_base", "hello world", [24912, 2375]),
        ("cl100k_base", "hello world", [15339, 1917]),
        ("cl100k_base", "antidisestablishmentarianism", [519, 85342, 34500, 479, 8997, 2191]),
        ("cl100k_base", "お誕生日おめでとう", [33334, 45918, 243, 21990, 9080, 33334, 62004, 16556, 78699]),
    ],
)
def test_encodings_give_openais_token_ids(encodings: dict[str, Any], encoding: str, text: str, ids: list[int]) -> None:
    assert encodings[encoding].encode_ordinary(text) == ids


def test_damaged_table_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_short(packed: bytes) -> bytes:
        return b"IQ== 0\n"

    monkeypatch.setattr(gzip, "decompress", cut_short)
    with pytest.raises(ValueError, match="o200k_base is damaged"):
        tables.build_encoding("o200k_base")


async def test_loading_touches_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    tokenizer = Tokenizer()
    await tokenizer.load()
    assert tokenizer.count_text("o200k_base", "hello world") == 2
    tokenizer.close()


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    "text",
    [
        "",
        "<|endoftext|>",
        "<|fim_prefix|>" * 10,
        "\ud800",
        "a\udfff" * 20_000,
        "\x00" * 100,
        "e\u0301" * 10_000,
        " " * 1_000_000,
        "a" * 1_000_000,
        "\n" * 300_000,
        "🧑‍🚀" * 20_000,
    ],
    ids=lambda text: f"{text[:4]!r} x{len(text)}",
)
async def test_token_count_of_any_text_is_at_most_its_bytes(tokenizer: Tokenizer, encoding: str, text: str) -> None:
    tokens = tokenizer.count_text(encoding, text)
    assert (tokens > 0) == bool(text)
    assert tokens <= len(text.encode("utf-8", "surrogatepass"))


async def test_cutting_long_text_adds_at_most_a_thousandth(tokenizer: Tokenizer, encodings: dict[str, Any]) -> None:
    text = "".join(f"Line {number}: the quick brown fox, über 33 lazy dogs.\n" for number in range(4_000))
    whole = len(encodings["o200k_base"].encode_ordinary(text))
    assert whole <= tokenizer.count_text("o200k_base", text) <= whole * 1.001


async def test_panic_in_the_tokenizer_falls_back_to_the_byte_count(tokenizer: Tokenizer) -> None:
    class PanicException(BaseException):
        """Named like the Rust binding's exception, which cannot be imported."""

    class Panicking:
        def count(self, text: str) -> int:
            raise PanicException

    tokenizer._encodings["o200k_base"] = Panicking()
    assert tokenizer.count_text("o200k_base", "häh") == 4


async def test_keyboard_interrupt_in_the_tokenizer_propagates(tokenizer: Tokenizer) -> None:
    class Interrupted:
        def count(self, text: str) -> int:
            raise KeyboardInterrupt

    tokenizer._encodings["o200k_base"] = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        tokenizer.count_text("o200k_base", "text")


async def test_before_loading_bytes_are_counted_and_not_cached(counters: dict[str, Any]) -> None:
    tokenizer = Tokenizer()
    assert tokenizer.count_text("o200k_base", "hello world") == 11
    tokenizer._encodings.update(counters)
    assert tokenizer.count_text("o200k_base", "hello world") == 2
    tokenizer.close()


async def test_concurrent_prompts_wait_for_one_load_of_their_encoding(
    counters: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []

    def build(name: str) -> Any:
        built.append(name)
        return counters[name]

    monkeypatch.setattr(tokenizer_module, "build_counter", build)
    tokenizer = Tokenizer()
    body = chat("hello world")
    counts = await asyncio.gather(*(tokenizer.count_prompt("chat", body, "gpt-4o") for _ in range(5)))
    assert counts == [PromptCount(9, 18, exact=True)] * 5
    assert (await tokenizer.count_prompt("chat", body, "gpt-4")).tokens == 9
    assert built == ["o200k_base", "cl100k_base"]
    tokenizer.close()


@pytest.mark.parametrize(
    ("protocol", "body", "model", "tokens"),
    [
        ("chat", chat("hello world"), "gpt-4o", 9),
        ("responses", {"input": "hello world"}, "gpt-5", 8),
        ("messages", chat("hello world"), "claude-sonnet-4-5", 49),
        ("completions", {"prompt": "hello world"}, "gpt-3.5-turbo-instruct", 2),
        ("embeddings", {"input": ["hello world", "hello"]}, "text-embedding-3-small", 3),
        ("chat", chat("hello world"), "nobody-knows", 109),
    ],
)
async def test_prompt_is_counted_by_the_rules_of_its_protocol_and_model(
    tokenizer: Tokenizer, protocol: Any, body: dict[str, Any], model: str, tokens: int
) -> None:
    assert (await tokenizer.count_prompt(protocol, body, model)).tokens == tokens


class _Spy:
    """Wraps an encoding, and records how much text it counts and in which threads."""

    def __init__(self, encoding: Any) -> None:
        self._encoding, self.characters, self.threads = encoding, 0, set[int]()

    def count(self, text: str) -> int:
        self.characters += len(text)
        self.threads.add(threading.get_ident())
        tokens: int = self._encoding.count(text)
        return tokens


@pytest.fixture
def spy(tokenizer: Tokenizer, counters: dict[str, Any]) -> _Spy:
    spy = _Spy(counters["o200k_base"])
    tokenizer._encodings["o200k_base"] = spy
    return spy


async def test_only_new_messages_of_a_growing_history_are_counted(tokenizer: Tokenizer, spy: _Spy) -> None:
    history = [f"message {number} " + "with some words " * 20 for number in range(30)]
    first = await tokenizer.count_prompt("chat", chat(*history), "gpt-4o")
    spy.characters = 0
    again = await tokenizer.count_prompt("chat", orjson.loads(orjson.dumps(chat(*history))), "gpt-4o")
    assert again == first
    assert spy.characters == 0
    await tokenizer.count_prompt("chat", chat(*history, "something new"), "gpt-4o")
    assert spy.characters == len("something new")


async def test_unchanged_tools_are_counted_once(tokenizer: Tokenizer, spy: _Spy) -> None:
    function = {"name": "look", "description": "Look it up", "parameters": {"type": "object", "properties": {"q": {}}}}
    body = chat("hi", tools=[{"type": "function", "function": function}])
    first = await tokenizer.count_prompt("chat", body, "gpt-4o")
    spy.characters = 0
    assert await tokenizer.count_prompt("chat", body, "gpt-4o") == first
    assert spy.characters == 0
    function["description"] = "Look it up, but differently"
    assert (await tokenizer.count_prompt("chat", body, "gpt-4o")).tokens == first.tokens + 3


async def test_cached_tool_counts_are_separate_per_model_family(tokenizer: Tokenizer) -> None:
    body = chat("hi", tools=[{"type": "function", "function": {"name": "f", "description": "中文" * 9}}])
    models = ("gpt-4o", "gpt-5", "claude-sonnet-4-5", "claude-opus-5", "mistral-large")
    together = [(await tokenizer.count_prompt("chat", body, model)).tokens for model in models]
    alone = []
    for model in models:
        tokenizer._counts.clear()
        alone.append((await tokenizer.count_prompt("chat", body, model)).tokens)
    assert together == alone
    assert together[1] - together[0] == 82 - 1


@pytest.mark.parametrize(
    ("body", "inline"),
    [
        (chat("word " * 1_500), True),
        (chat("word " * 2_000), False),
        (chat(*(f"word {number}" for number in range(3_000))), False),
        (
            chat("hi", tools=[{"function": {"name": f"f{number}", "description": "d" * 99}} for number in range(99)]),
            False,
        ),
    ],
)
async def test_only_large_new_text_is_counted_in_a_thread(
    tokenizer: Tokenizer, spy: _Spy, body: dict[str, Any], inline: bool
) -> None:
    await tokenizer.count_prompt("chat", body, "gpt-4o")
    assert (spy.threads == {threading.get_ident()}) == inline


async def test_thread_and_event_loop_count_the_same(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    body = chat("some words " * 3_000, "and more", tools=[{"function": {"name": "f", "parameters": {"a": "\ud800"}}}])
    in_thread = await tokenizer.count_prompt("chat", body, "gpt-5")
    monkeypatch.setattr(tokenizer_module, "_INLINE_CHARACTERS", 10**9)
    other = Tokenizer()
    await other.load()
    assert await other.count_prompt("chat", body, "gpt-5") == in_thread
    other.close()


async def test_cache_is_bounded_and_keeps_no_text(counters: dict[str, Any]) -> None:
    tokenizer = Tokenizer(cache_entries_max=100)
    tokenizer._encodings.update(counters)
    for number in range(1_000):
        tokenizer.count_text("o200k_base", f"text {number}")
    cache = tokenizer._counts["o200k_base"]
    assert len(cache) <= 100
    assert all(isinstance(part, int) for key in cache._young for part in key)
    assert sys.getsizeof(cache._young) < 20_000
    tokenizer.close()


async def test_recently_used_counts_stay_cached(tokenizer: Tokenizer, spy: _Spy) -> None:
    small = Tokenizer(cache_entries_max=20)
    small._encodings["o200k_base"] = spy
    for number in range(200):
        small.count_text("o200k_base", "the system prompt")
        small.count_text("o200k_base", f"{number}")
    assert spy.characters == len("the system prompt") + sum(len(str(number)) for number in range(200))
    small.close()


@pytest.mark.parametrize("size", [1, 3, 7, 100, 5_000])
async def test_output_count_is_independent_of_chunk_sizes_within_1_percent(
    tokenizer: Tokenizer, encodings: dict[str, Any], size: int
) -> None:
    text = "A stream comes in pieces: some words, 12 numbers, ünïcode, 中文字 and code(x=1);\n" * 40
    counter = tokenizer.output_counter("gpt-4o")
    for start in range(0, len(text), size):
        counter.add(text[start : start + size])
    whole = len(encodings["o200k_base"].encode_ordinary(text))
    assert whole - 2 <= counter.tokens <= whole * 1.01 + 2


async def test_output_of_a_model_without_an_exact_tokenizer_is_overestimated(tokenizer: Tokenizer) -> None:
    exact, bound = tokenizer.output_counter("gpt-4o"), tokenizer.output_counter("claude-sonnet-4-5")
    for counter in (exact, bound):
        counter.add("one two three four five six seven eight nine ten")
    assert (exact.tokens, bound.tokens) == (10, 14)


def test_output_without_spaces_is_counted_in_linear_time() -> None:
    asked: list[int] = []

    def count(text: str) -> int:
        asked.append(len(text))
        return len(text)

    counter = OutputCounter(count, 100)
    for _ in range(10_000):
        counter.add("x")
    assert counter.tokens == 10_000
    assert sum(asked) == 10_000


async def test_empty_output_has_no_tokens(tokenizer: Tokenizer) -> None:
    counter = tokenizer.output_counter("gpt-4o")
    assert counter.tokens == 0
    counter.add("")
    assert counter.tokens == 0
