"""Compression of a call's prompt, as far as the settings and the measured quality allow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from gateway.control import Snapshot
from gateway.orchestration.complexity import intent_of
from gateway.orchestration.prompt_caches import Conversation, Prompt, PromptCaches
from gateway.orchestration.semantic_compression import Question, SemanticAnswers, SemanticCompression
from gateway.pipeline.call import Call, Original
from gateway.tokenizer import Tokenizer
from policies.amounts import Amount
from policies.intents import Intent
from policies.pricing import Rates, Usage, worst_case
from policies.settings import Settings
from policies.tokens import CountText, PromptCount, counting_for, with_model_factor

# Compression is off by default and slow to import, so the first call that is to be compressed imports it, in a thread.
if TYPE_CHECKING:
    from policies.compression import Compressed, CompressionPolicy, Roi, SemanticRequest

# Compressing a shorter prompt saves less than it costs in time and in prompt cache.
_PROMPT_TOKENS_MIN: Final = 256
# The field that holds the history in each protocol. The other protocols have none.
_HISTORY: Final = {"chat": "messages", "messages": "messages", "responses": "input"}
# The assumed answer of a call without a cap: before a question is paid for, this much is kept for the call itself.
_OUTPUT_TOKENS_USUAL: Final = 512


@dataclass(frozen=True, slots=True)
class _CompressionJob:
    """One prompt to be shortened. `needed_tokens` is the target; None means the ratio of the policy."""

    original: Original
    strategy: str
    settings: Settings
    count_text: CountText
    needed_tokens: int | None
    intent: str

    @property
    def policy(self) -> CompressionPolicy:
        from policies.compression import Aggressiveness, CompressionPolicy, Strategy

        settings = self.settings
        return CompressionPolicy(
            Strategy(self.strategy),
            settings.compression_target_ratio,
            settings.compression_min_quality,
            Aggressiveness(settings.compression_aggressiveness),
        )


class PromptCompression:
    """`strategies` returns those of an intent in the order of preference: under pressure, the next one is tried."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        snapshot: Callable[[], Snapshot],
        *,
        strategies: Callable[[Intent, Snapshot], Sequence[str]],
        semantic: SemanticCompression,
        memory_tokens_max: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._snapshot = snapshot
        self._strategies = strategies
        self._semantic = semantic
        self._memory_tokens_max = memory_tokens_max
        self._caches = PromptCaches()

    async def stop(self) -> None:
        await self._semantic.stop()

    def skip_reason(self, call: Call, snapshot: Snapshot) -> str:
        """Why a call is not compressed; empty if it may be."""
        if not snapshot.settings.compression_enabled:
            return "compression is off"
        field = _HISTORY.get(call.protocol.name)
        if field is None or call.count is None or not isinstance(call.request.body.get(field), list):
            return "it carries no history that could be shortened"
        if self._strategies(intent_of(call), snapshot)[0] == "none":
            return f"the strategy for {intent_of(call)} is none"
        return ""

    def answered(self, call: Call, usage: Usage) -> None:
        """Learn from what was billed whether the provider has a prompt cache."""
        self._caches.answered(_conversation(call), usage)

    async def compress(
        self, call: Call, needed_tokens: int | None, *, under_pressure: bool = False, is_dry_run: bool = False
    ) -> bool:
        """Shorten the prompt to `needed_tokens` (None: by the configured ratio), never below the minimum quality.

        Returns whether the prompt is smaller now. A call that was shortened before is shortened again from its original history, because
        no text is shortened twice. `under_pressure`: the call does not fit as it is, so losses of the prompt cache do not count,
        and no model is asked, as there is no budget for it. `is_dry_run`: a dry run, which asks no model and remembers nothing.
        """
        count = call.count
        if count is None:
            return False
        original = await self._original(call, count)
        if original.count.tokens < _PROMPT_TOKENS_MIN:
            return False
        work, condensed, compressed = await self._shortest(
            call, original, needed_tokens, may_ask_model=not (under_pressure or is_dry_run)
        )
        original_prompt = Prompt.of(original.messages, original.count.tokens)
        if compressed.messages is None or compressed.tokens_after >= count.reserve_tokens:
            if call.original is None:
                self._note_sent(call, original_prompt, is_dry_run)
            call.decisions.append(
                {"compress": compressed.reason, "strategy": work.strategy} | _semantic_details(condensed)
            )
            return False
        shorter = Prompt.of(compressed.messages, max(0, original.count.tokens - compressed.tokens_saved))
        condensing_nano_usd = original.condensing_nano_usd + condensed.cost_nano_usd
        gain = self._gain(call, compressed, original_prompt, shorter, condensing_nano_usd)
        # What asking has cost is spent either way, so it does not count here.
        if not under_pressure and gain.net_nano_usd + gain.cost_nano_usd < 0:
            self._note_sent(call, original_prompt, is_dry_run)
            lost = (
                f"the prompt cache would lose {gain.cache_lost_nano_usd} nano-USD, {gain.saved_nano_usd} would be saved"
            )
            call.decisions.append(
                {"compress": f"not done: {lost}", "strategy": work.strategy} | _semantic_details(condensed)
            )
            return False
        self._note_sent(call, shorter, is_dry_run)
        call.original = Original(original.messages, original.count, call.model, condensing_nano_usd)
        call.request.body = {**call.request.body, _HISTORY[call.protocol.name]: compressed.messages}
        _note(call, compressed, work.strategy, gain, condensed)
        return True

    async def original_tokens(self, call: Call) -> int | None:
        """The size of the prompt as the client sent it, counted for the call's model. None for a call that was not counted."""
        if call.original is None or call.count is None:
            return call.count.tokens if call.count is not None else None
        return (await self._original(call, call.count)).count.tokens

    async def _original(self, call: Call, count: PromptCount) -> Original:
        """The history as the client sent it, counted for the call's model, which may have changed since the last count."""
        current_messages = call.request.body[_HISTORY[call.protocol.name]]
        original = call.original or Original(current_messages, count, call.model)
        if original.model == call.model:
            return original
        extra_tokens = await asyncio.to_thread(
            self._extra_tokens, original.messages, current_messages, self._text_counter(call)
        )
        counted = PromptCount(count.tokens + extra_tokens, count.reserve_tokens + extra_tokens, exact=count.exact)
        return replace(original, count=counted, model=call.model)

    @staticmethod
    def _extra_tokens(messages: Sequence[Any], base_messages: Sequence[Any], count_text: CountText) -> int:
        from policies.compression import text_tokens

        return text_tokens(messages, count_text) - text_tokens(base_messages, count_text)

    def _text_counter(self, call: Call) -> CountText:
        """A function that counts what a text adds to the prompt of the call's model."""
        deployment = call.deployment
        assert deployment is not None  # noqa: S101 - counted means chosen
        counting = counting_for(deployment.model, deployment.provider)
        return with_model_factor(lambda text: self._tokenizer.count_text(counting.encoding, text), counting)

    def _note_sent(self, call: Call, prompt: Prompt, is_dry_run: bool) -> None:
        if not is_dry_run:
            self._caches.note_sent(_conversation(call), call.id, prompt)

    async def _shortest(
        self, call: Call, original: Original, needed_tokens: int | None, may_ask_model: bool
    ) -> tuple[_CompressionJob, SemanticAnswers, Compressed]:
        """The result of the first strategy that reaches what is needed, otherwise of the one that gets closest."""
        best: tuple[_CompressionJob, SemanticAnswers, Compressed] | None = None
        snapshot = self._snapshot()
        for strategy in self._strategies(intent_of(call), snapshot):
            work = self._work(call, original, strategy, snapshot.settings, needed_tokens)
            condensed = await self._condensed(call, work, may_ask_model)
            compressed = await asyncio.to_thread(self._compressed, work, condensed.answers)
            if best is None or compressed.tokens_after < best[2].tokens_after:
                best = work, condensed, compressed
            if needed_tokens is None or compressed.tokens_after <= needed_tokens:
                break
        assert best is not None  # noqa: S101 - there is always a first strategy
        return best

    def _work(
        self, call: Call, original: Original, strategy: str, settings: Settings, needed_tokens: int | None
    ) -> _CompressionJob:
        intent = call.intent.intent if call.intent else ""
        return _CompressionJob(original, strategy, settings, self._text_counter(call), needed_tokens, intent)

    def _compressed(self, work: _CompressionJob, condensed: Mapping[str, str]) -> Compressed:
        from policies.compression import compress_chat

        return compress_chat(
            work.original.messages,
            work.policy,
            work.count_text,
            target_tokens=work.needed_tokens,
            prompt_tokens=work.original.count.reserve_tokens,
            intent=work.intent,
            memory_tokens_max=self._memory_tokens_max,
            condensed=condensed,
        )

    async def _condensed(self, call: Call, work: _CompressionJob, may_ask_model: bool) -> SemanticAnswers:
        """The condensed texts, asking for new ones if that pays. Only for the strategy `semantic`."""
        if work.strategy != "semantic":
            return SemanticAnswers()
        requests = await asyncio.to_thread(self._requests, work)
        known_answers = self._semantic.known(call, requests)
        questions = self._semantic.questions(call, requests)
        if not questions:
            return known_answers
        if not self._pays(call, work, questions):
            known_answers.reason = "asking would cost more than it saves"
        elif not may_ask_model:  # a call that does not fit has no budget for asking, and a dry run must not spend
            known_answers.reason = f"nobody is asked about {len(questions)} texts now"
        else:
            new_answers = await self._semantic.ask(call, questions, _amount_of_call(call))
            return SemanticAnswers(
                known_answers.answers | new_answers.answers, new_answers.cost_nano_usd, new_answers.reason
            )
        return known_answers

    def _requests(self, work: _CompressionJob) -> tuple[SemanticRequest, ...]:
        from policies.compression import semantic_requests

        return semantic_requests(
            work.original.messages,
            work.policy,
            work.count_text,
            intent=work.intent,
            memory_tokens_max=self._memory_tokens_max,
        )

    def _pays(self, call: Call, work: _CompressionJob, questions: Sequence[Question]) -> bool:
        """Whether this call alone is expected to save more than asking costs at worst, plus what the prompt cache loses."""
        from policies.compression import compression_roi

        if call.price is None:
            return False
        saved = cost = 0
        for question in questions:
            demand = question.demand
            saved += max(0, demand.prompt_tokens - demand.output_tokens_max)
            cost += demand.amount(demand.output_tokens_max).nano_usd
        prompt = Prompt.of(work.original.messages, work.original.count.tokens)
        cached = self._caches.cached_tokens(_conversation(call), call.id, prompt)
        rates = call.price.rates
        gain = compression_roi(
            saved, rates.input, rates.cache_read, cached_tokens_before=cached, compressor_cost_nano_usd=cost
        )
        return gain.is_worth_it

    def _gain(self, call: Call, compressed: Compressed, original: Prompt, shorter: Prompt, cost_nano_usd: int) -> Roi:
        from policies.compression import compression_roi

        rates = call.price.rates if call.price is not None else _FREE
        conversation = _conversation(call)
        return compression_roi(
            compressed.tokens_saved,
            rates.input,
            rates.cache_read,
            cached_tokens_before=self._caches.cached_tokens(conversation, call.id, original),
            cached_tokens_after=self._caches.cached_tokens(conversation, call.id, shorter),
            compressor_cost_nano_usd=cost_nano_usd,
        )


_FREE: Final = Rates(0, 0, 0, 0, 0, 0, 0, 0)


def _note(call: Call, compressed: Compressed, strategy: str, gain: Roi, condensed: SemanticAnswers) -> None:
    """Record the compression. The saving is net of its cost: what the run is better off by."""
    decision = {"compress": compressed.reason, "strategy": strategy, "quality": round(compressed.quality, 3)}
    call.decisions.append(
        decision | {"by": list(compressed.actions), "net_nano_usd": gain.net_nano_usd} | _semantic_details(condensed)
    )
    call.saved = Amount(compressed.tokens_saved, gain.net_nano_usd)
    # A call may be shortened twice, the second time because it did not fit: only the total is reported.
    other_actions = [action for action in call.actions if not action.startswith("compress=")]
    call.actions[:] = [*other_actions, f"compress={call.saved.tokens}"]


def _semantic_details(condensed: SemanticAnswers) -> dict[str, Any]:
    details = {"asking": condensed.reason, "asking_nano_usd": condensed.cost_nano_usd}
    return {name: value for name, value in details.items() if value}


def _amount_of_call(call: Call) -> Amount:
    """An estimate of what the call itself needs, which questions must leave."""
    prompt = call.count.reserve_tokens if call.count is not None else 0
    output = call.request.output_tokens_max or _OUTPUT_TOKENS_USUAL
    nano_usd = 0
    if call.price is not None:
        price = call.price.with_factors(call.request.body.get("speed"), call.request.body.get("inference_geo"))
        worst = worst_case(price, prompt, output, call.request.body.get("service_tier"))
        nano_usd = worst.prompt_nano_usd + worst.output_nano_usd_per_token * output * call.request.choices
    return Amount(prompt + output * call.request.choices, nano_usd, 1)


def _conversation(call: Call) -> Conversation:
    return call.principal.project, call.run, call.tags.step, call.model
