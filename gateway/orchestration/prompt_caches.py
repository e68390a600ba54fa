"""An estimate of what the provider's prompt cache holds of each conversation.

A cache serves the longest prefix that a prompt shares with an earlier one. Therefore digests of the messages sent last are kept, and the
next prompt, before and after compression, is compared with them. Whether the provider caches at all shows in what it bills: if a
conversation continues without cached tokens, there is no cache to lose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson
from cachetools import LRUCache

from policies.pricing import Usage

_CONVERSATIONS_MAX: Final = 10_000
# The shortest prefix that is cached: 1,024 tokens at OpenAI, and at least as many elsewhere.
CACHED_TOKENS_MIN: Final = 1_024

Conversation = tuple[str, str | None, str, str]  # project, run, step, model


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt's messages by digest and size in bytes."""

    messages: tuple[tuple[int, int], ...]
    tokens: int
    is_marked: bool

    @classmethod
    def of(cls, messages: Sequence[Mapping[str, Any]], tokens: int) -> Prompt:
        from policies.compression import has_cache_marks  # loaded by the first call that is to be compressed

        written = [orjson.dumps(message) for message in messages]
        return cls(tuple((hash(text), len(text)) for text in written), tokens, has_cache_marks(messages))

    def shared_tokens(self, other: Prompt) -> int:
        """The tokens of this prompt up to the first differing message, estimated by its share of bytes."""
        total = sum(size for _, size in self.messages)
        shared = 0
        for message, other_message in zip(self.messages, other.messages, strict=False):
            if message != other_message:
                break
            shared += message[1]
        return self.tokens * shared // total if total else 0


@dataclass(frozen=True, slots=True)
class _SentPrompt:
    """`previous` is the prompt sent before this call. This call's own prompts are compared with it, since it may be shortened twice."""

    call_id: str
    prompt: Prompt
    previous: Prompt | None = None
    expected_tokens: int = 0  # what the cache should serve of it
    caches: bool | None = None  # None: not seen yet

    def baseline(self, call_id: str) -> Prompt | None:
        return self.previous if call_id == self.call_id else self.prompt


class PromptCaches:
    def __init__(self) -> None:
        self._sent: LRUCache[Conversation, _SentPrompt] = LRUCache(_CONVERSATIONS_MAX)

    def cached_tokens(self, conversation: Conversation, call_id: str, prompt: Prompt) -> int:
        """The tokens of this prompt that the provider would serve from its cache; 0 if the client marks what to cache, because
        compression leaves that part alone."""
        sent = self._sent.get(conversation)
        baseline = sent.baseline(call_id) if sent is not None and sent.caches is not False else None
        if baseline is None or prompt.is_marked:
            return 0
        shared = prompt.shared_tokens(baseline)
        return shared if shared >= CACHED_TOKENS_MIN else 0

    def note_sent(self, conversation: Conversation, call_id: str, prompt: Prompt) -> None:
        """Note that this prompt is sent now."""
        sent = self._sent.get(conversation)
        if sent is None:
            self._sent[conversation] = _SentPrompt(call_id, prompt)
            return
        expected = self.cached_tokens(conversation, call_id, prompt)
        self._sent[conversation] = _SentPrompt(call_id, prompt, sent.baseline(call_id), expected, sent.caches)

    def answered(self, conversation: Conversation, usage: Usage) -> None:
        """Learn from what was billed whether there is a cache at all."""
        sent = self._sent.get(conversation)
        if sent is None:
            return
        if usage.cache_read_tokens or sent.expected_tokens:
            self._sent[conversation] = replace(sent, caches=usage.cache_read_tokens > 0)
