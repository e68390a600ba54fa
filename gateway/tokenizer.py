"""Counts tokens without blocking the event loop: the tables, a cache of counts, and threads for large texts.

The rules that turn a request into strings are in `policies.tokens`; this module has the function that counts one string, and
makes it cheap: an agent resends its whole history with every call, so counts are cached by the hash of each string. No text
is kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, cast

import orjson

from gateway.tokenizer_tables import Counter, build_counter
from policies.tokens import (
    CachedCost,
    Counting,
    CountText,
    PromptCount,
    count_chat,
    count_completion,
    count_embeddings,
    count_messages,
    count_responses,
    counting_for,
)

Protocol = Literal["chat", "responses", "messages", "completions", "embeddings"]
Rules = Callable[[Mapping[str, Any], Counting, CountText, CachedCost], PromptCount]

DEFAULT_ENCODING = "o200k_base"

_RULES: dict[Protocol, Rules] = {
    "chat": count_chat,
    "responses": count_responses,
    "messages": count_messages,
    "completions": count_completion,
    "embeddings": count_embeddings,
}

# tiktoken takes quadratic time for a run of one kind of character, and panics on a million spaces. Pieces of 16,384
# characters make it linear; a cut can split a token, which over-counts by at most 0.1 %.
_PIECE_CHARACTERS = 16_384
# Measured: 8,192 characters take 0.3 to 1.7 ms (random letters are the worst), less than a tenth of what the loop may stall,
# and handing work to a thread costs 0.02 ms. 1,000 cache hits take about 0.5 ms.
_INLINE_CHARACTERS = 8_192
_INLINE_LOOKUPS = 1_000
# Streams are counted in blocks, small enough that reading the count between chunks takes less than 0.1 ms.
_OUTPUT_BLOCK_CHARACTERS = 512
_THREADS = 2


class _TooMuchInlineError(Exception):
    """More text than should be counted on the event loop: start again in a thread, where earlier counts are cache hits."""


class Tokenizer:
    """Counts prompts and outputs for every model; one per process, used from the event loop.

    Call `load` at start. Until an encoding is loaded, `count_text` returns the number of UTF-8 bytes, which is an upper bound
    in both encodings, and `count_prompt` waits. `cache_entries_max` bounds the memory of cached counts (about 0.2 KB each).
    """

    def __init__(self, *, cache_entries_max: int = 20_000) -> None:
        self._encodings: dict[str, Counter] = {}
        self._counts: dict[str, _CountCache] = {}
        self._cache_entries_max = cache_entries_max
        self._loading = asyncio.Lock()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="tokenizer")

    async def load(self, *encodings: str) -> None:
        """Build encodings (by default o200k_base) in a thread, from shipped files; safe to call again.

        cl100k_base, which only GPT-3.5, GPT-4 and embeddings use, is otherwise built at its first request, which blocks the
        loop for 0.1 s and more: name it here if such a model is configured.
        """
        for name in encodings or (DEFAULT_ENCODING,):
            async with self._loading:
                if name not in self._encodings:
                    loop = asyncio.get_running_loop()
                    self._encodings[name] = await loop.run_in_executor(self._threads, build_counter, name)

    def close(self) -> None:
        """End the threads; counts in progress are finished, queued ones are cancelled."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def count_text(self, encoding: str, text: str) -> int:
        """Tokens of one string, cached by its hash. Never raises for any `str`; takes linear time."""
        counts = self._counts_in(encoding)
        key = (hash(text), len(text))
        tokens = counts.get(key)
        if tokens is None:
            tokens = self._count_uncached(encoding, text)
            if encoding in self._encodings:
                counts.put(key, tokens)
        return tokens

    async def count_prompt(
        self, protocol: Protocol, body: Mapping[str, Any], model: str, provider: str | None = None
    ) -> PromptCount:
        """Prompt tokens of a decoded request, by the rules of its protocol and its model.

        Counts on the loop if there is little new text, otherwise in a thread, which reads `body` again: do not change it
        before this returns.
        """
        counting = counting_for(model, provider)
        if counting.encoding not in self._encodings:
            await self.load(counting.encoding)
        rules, encoding = _RULES[protocol], counting.encoding
        try:
            return rules(body, counting, self._inline_count(encoding), self._cached_cost(counting, _INLINE_CHARACTERS))
        except _TooMuchInlineError:
            return await asyncio.get_running_loop().run_in_executor(
                self._threads, rules, body, counting, self._count_in(encoding), self._cached_cost(counting, None)
            )

    def count_prompt_now(self, protocol: str, body: Mapping[str, Any]) -> int:
        """The same on the caller's thread, however long it takes: for requests whose text was counted a moment ago. 0 for
        protocols without tokens."""
        rules = _RULES.get(cast(Protocol, protocol))
        if rules is None:
            return 0
        counting = counting_for(str(body.get("model", "")), "openai")
        encoding = counting.encoding
        return rules(body, counting, self._count_in(encoding), self._cached_cost(counting, None)).tokens

    def output_counter(self, model: str, provider: str | None = None) -> OutputCounter:
        """A counter for one answer of the model, to be fed while the answer is streamed."""
        counting = counting_for(model, provider)
        encoding = counting.encoding
        return OutputCounter(lambda text: self._count_uncached(encoding, text), counting.factor_percent)

    def _count_uncached(self, encoding: str, text: str) -> int:
        counter = self._encodings.get(encoding)
        if counter is None:
            return _bytes_bound(text)
        if len(text) <= _PIECE_CHARACTERS:
            return _count_piece(counter, text)
        cuts = range(0, len(text), _PIECE_CHARACTERS)
        return sum(_count_piece(counter, text[start : start + _PIECE_CHARACTERS]) for start in cuts)

    def _counts_in(self, encoding: str) -> _CountCache:
        counts = self._counts.get(encoding)
        if counts is None:
            counts = self._counts.setdefault(encoding, _CountCache(self._cache_entries_max))
        return counts

    def _count_in(self, encoding: str) -> CountText:
        return lambda text: self.count_text(encoding, text)

    def _inline_count(self, encoding: str) -> CountText:
        counts = self._counts_in(encoding)
        characters_left, lookups_left = _INLINE_CHARACTERS, _INLINE_LOOKUPS

        def count(text: str) -> int:
            nonlocal characters_left, lookups_left
            key = (hash(text), len(text))
            tokens = counts.get(key)
            lookups_left -= 1
            if tokens is None:
                characters_left -= len(text)
            if characters_left < 0 or lookups_left < 0:
                raise _TooMuchInlineError
            if tokens is None:
                tokens = self._count_uncached(encoding, text)
                counts.put(key, tokens)
            return tokens

        return count

    def _cached_cost(self, counting: Counting, bytes_max: int | None) -> CachedCost:
        # Tools and schemas repeat with every call of an agent, and rendering them costs far more than hashing their JSON. The
        # cost also depends on the family's rules, so the whole counting is part of the key.
        counts = self._counts_in(counting.encoding)

        def remember(rule: str, value: Any, compute: Callable[[], int]) -> int:
            serialized = _canonical_json(value)
            if serialized is None:
                return compute()
            key = (hash((counting, rule, serialized)), len(serialized))
            tokens = counts.get(key)
            if tokens is None:
                if bytes_max is not None and len(serialized) > bytes_max:
                    raise _TooMuchInlineError
                tokens = compute()
                counts.put(key, tokens)
            return tokens

        return remember


class OutputCounter:
    """Counts the tokens of one answer while it is streamed: `add` each piece of text, read `tokens` at any time.

    Text is counted in blocks that are cut before a word, so the sum only differs from the count of the whole by the
    tokenizer's choices at the cuts. For a model without a public tokenizer it is multiplied by the model's factor.
    """

    __slots__ = ("_count", "_counted_tokens", "_factor_percent", "_pending", "_pending_characters", "_pending_tokens")

    def __init__(self, count: CountText, factor_percent: int) -> None:
        self._count, self._factor_percent = count, factor_percent
        self._pending: list[str] = []
        self._pending_characters = self._counted_tokens = 0
        self._pending_tokens: int | None = 0

    def add(self, text: str) -> None:
        """Add the next piece of the answer; costs one append, and a count once per block."""
        self._pending.append(text)
        self._pending_characters += len(text)
        self._pending_tokens = None
        if self._pending_characters >= _OUTPUT_BLOCK_CHARACTERS:
            self._count_block()

    @property
    def tokens(self) -> int:
        """Tokens so far; may decrease by a few when pieces of a word join."""
        if self._pending_tokens is None:
            self._pending_tokens = self._count("".join(self._pending))
        return -(-(self._counted_tokens + self._pending_tokens) * self._factor_percent // 100)

    def _count_block(self) -> None:
        text = "".join(self._pending)
        cut = text.rfind(" ", 1)
        cut = cut if cut > 0 else len(text)
        self._counted_tokens += self._count(text[:cut])
        self._pending, self._pending_characters = [text[cut:]], len(text) - cut
        if self._pending_characters >= _OUTPUT_BLOCK_CHARACTERS:
            # A word longer than a block would otherwise be counted again with every further piece.
            self._counted_tokens += self._count(text[cut:])
            self._pending, self._pending_characters = [], 0


class _CountCache:
    """Counts by (hash, length) in two generations: hits move to the young one, and the old one is dropped when the young is
    full. As good as least-recently-used here, at the price of a dictionary look-up.

    Used from several threads at once: each step is one dictionary operation, and a lost entry is merely counted again.
    """

    __slots__ = ("_generation_max", "_old", "_young")

    def __init__(self, entries_max: int) -> None:
        self._generation_max = max(1, entries_max // 2)
        self._young: dict[tuple[int, int], int] = {}
        self._old: dict[tuple[int, int], int] = {}

    def get(self, key: tuple[int, int]) -> int | None:
        tokens = self._young.get(key)
        if tokens is None:
            tokens = self._old.get(key)
            if tokens is not None:
                self.put(key, tokens)
        return tokens

    def put(self, key: tuple[int, int], tokens: int) -> None:
        if len(self._young) >= self._generation_max:
            self._old, self._young = self._young, {}
        self._young[key] = tokens

    def __len__(self) -> int:
        return len(self._young) + len(self._old)


def _count_piece(encoding: Counter, text: str) -> int:
    try:
        return encoding.count(text)
    except BaseException as error:
        # A panic in tiktoken's Rust code arrives as a BaseException that cannot be imported; anything else is not handled here.
        if type(error).__name__ != "PanicException":
            raise
        return _bytes_bound(text)


def _bytes_bound(text: str) -> int:
    """No token of either encoding is shorter than a byte; a lone surrogate counts as the 3 bytes of its replacement."""
    return len(text.encode("utf-8", "surrogatepass"))


def _canonical_json(value: Any) -> bytes | None:
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        # Lone surrogates, integers beyond 64 bits, great depth: too rare to be worth caching.
        return None
