"""A smaller prompt for the same call, where the settings allow it and quality permits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from gateway.control import Snapshot
from gateway.pipeline.call import Call
from gateway.tokenizer import Tokenizer
from policies.amounts import Amount
from policies.compression import Aggressiveness, Compressed, CompressionPolicy, Strategy, compress_chat, worth_it
from policies.intents import Intent
from policies.settings import Settings
from policies.tokens import counting_for

# What compressing a shorter prompt could save is not worth its milliseconds, nor the prompt cache it breaks.
_PROMPT_TOKENS_MIN: Final = 256
# Messages and chat carry the same list of messages; the other protocols have no history of that form.
_COMPRESSIBLE: Final = ("chat", "messages")


class Compressing:
    def __init__(self, tokenizer: Tokenizer, snapshot: Callable[[], Snapshot]) -> None:
        self._tokenizer = tokenizer
        self._snapshot = snapshot

    def is_offered(self, call: Call, settings: Settings) -> bool:
        if call.protocol.name not in _COMPRESSIBLE or call.count is None or not settings.compression_enabled:
            return False
        return policy_of(settings, call).strategy is not Strategy.NONE

    async def compress(self, call: Call, needed_tokens: int) -> bool:
        """To `needed_tokens` (0: by the settings' ratio), never below the minimum quality. True: the prompt is smaller now."""
        count = call.count
        if count is None or count.tokens < _PROMPT_TOKENS_MIN:
            return False
        policy = policy_of(self._snapshot().settings, call)
        found = await asyncio.to_thread(self._compressed, call, policy, needed_tokens)
        if found.messages is None or found.tokens_saved <= 0:
            call.decisions.append({"compress": found.reason})
            return False
        rate = call.price.rates.input if call.price is not None else 0
        gain = worth_it(found.tokens_saved, rate, 0.0, 0.0, 0, tokens_past_change=found.tokens_past_change)
        if not gain.is_worth_it:
            call.decisions.append({"compress": "would cost more than it saves"})
            return False
        call.request.body = {**call.request.body, "messages": found.messages}
        call.actions.append(f"compress={found.tokens_saved}")
        call.decisions.append({"compress": found.reason, "quality": round(found.quality, 3), "by": list(found.actions)})
        call.saved += Amount(found.tokens_saved, gain.saved_nano_usd)
        return True

    def _compressed(self, call: Call, policy: CompressionPolicy, needed_tokens: int) -> Compressed:
        deployment, count = call.deployment, call.count
        assert deployment is not None  # noqa: S101 - counted means chosen
        assert count is not None  # noqa: S101
        encoding = counting_for(deployment.model, deployment.provider).encoding
        return compress_chat(
            call.request.body["messages"],
            policy,
            lambda text: self._tokenizer.count_text(encoding, text),
            target_tokens=needed_tokens or None,
            prompt_tokens=count.reserve_tokens,
            intent=call.intent.intent if call.intent else "",
        )


def policy_of(settings: Settings, call: Call) -> CompressionPolicy:
    intent = Intent(call.intent.intent) if call.intent is not None else Intent.GENERATE
    return CompressionPolicy(
        Strategy(settings.compression_strategy[intent]),
        settings.compression_target_ratio,
        settings.compression_min_quality,
        Aggressiveness(settings.compression_aggressiveness),
    )
