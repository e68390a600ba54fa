"""Texts condensed by a cheap model for the strategy `semantic`, at the expense of the run, and cached by content.

Each text is condensed once, and the result serves every later call that carries the same text. A call does not wait for late answers:
it goes on without them, and they serve the next call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import orjson
import structlog
from cachetools import LRUCache

from gateway.ledger.port import Ledger, LedgerUnavailable
from gateway.orchestration.model_calls import ModelCalls
from gateway.pipeline.call import Call
from policies.amounts import UNITS, Amount
from policies.budgets import Chain
from policies.pressure import limit_in_force
from policies.reservation import Balance, Demand

if TYPE_CHECKING:
    from policies.compression import SemanticRequest

_log = structlog.get_logger(__name__)
_ANSWERS_MAX: Final = 5_000
# When a text that could not be condensed is tried again.
_RETRY_MS: Final = 60_000
_DRAIN_SECONDS: Final = 5.0

Key = tuple[str, str, str]  # project, model, what is asked


@dataclass(frozen=True, slots=True)
class SemanticRules:
    """`model` None: no model is asked."""

    model: str | None
    wait_ms: int
    texts_max: int


@dataclass(frozen=True, slots=True)
class Question:
    request: SemanticRequest
    demand: Demand

    @property
    def body(self) -> dict[str, Any]:
        return {"messages": self.request.messages, "max_tokens": self.request.output_tokens_max, "temperature": 0}


@dataclass(slots=True)
class SemanticAnswers:
    """Answers by the keys of their questions, and what this call paid for new ones."""

    answers: dict[str, str] = field(default_factory=dict)
    cost_nano_usd: int = 0
    reason: str = ""  # why no model was asked, or not about all texts


class SemanticCompression:
    def __init__(
        self,
        model_calls: ModelCalls,
        ledger: Ledger,
        rules: SemanticRules,
        *,
        count: Callable[[Sequence[Mapping[str, str]]], int],
        clock_ms: Callable[[], int],
    ) -> None:
        """`count` is an upper bound of the tokens of a prompt."""
        self._model_calls = model_calls
        self._ledger = ledger
        self._rules = rules
        self._count = count
        self._clock_ms = clock_ms
        self._answers: LRUCache[Key, str] = LRUCache(_ANSWERS_MAX)
        self._failed: LRUCache[Key, int] = LRUCache(_ANSWERS_MAX)
        self._calls_in_flight: dict[Key, asyncio.Task[int]] = {}

    async def stop(self) -> None:
        """Give open questions a little time to be answered. They are paid for, and booked in any case."""
        tasks = list(self._calls_in_flight.values())
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_DRAIN_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def known(self, call: Call, requests: Sequence[SemanticRequest]) -> SemanticAnswers:
        """The answers that are cached already."""
        model, project = self._rules.model or "", call.principal.project
        pairs = ((request.key, self._answers.get((project, model, request.key))) for request in requests)
        return SemanticAnswers({key: answer for key, answer in pairs if answer is not None})

    def questions(self, call: Call, requests: Sequence[SemanticRequest]) -> list[Question]:
        """The questions whose answers are not cached, the largest texts first. Empty if the model has no known price."""
        model, project = self._rules.model, call.principal.project
        if model is None:
            return []
        questions = []
        for request in requests:
            key = (project, model, request.key)
            if key in self._answers or self._failed.get(key, 0) > self._clock_ms():
                continue
            demand = self._model_calls.demand(model, self._count(request.messages), request.output_tokens_max)
            if demand is not None:
                questions.append(Question(request, demand))
        questions.sort(key=lambda question: -question.demand.prompt_tokens)
        return questions[: self._rules.texts_max]

    async def ask(self, call: Call, questions: Sequence[Question], spare: Amount) -> SemanticAnswers:
        """Ask if the run has room for it besides `spare`, which the call itself needs. Waits at most `wait_ms`."""
        if not await self._has_room(call, questions, spare):
            return SemanticAnswers(reason="the budget has no room for asking")
        tasks = [self._task(call, question) for question in questions]
        finished, late = await asyncio.wait(tasks, timeout=self._rules.wait_ms / 1000)
        answers = self.known(call, [question.request for question in questions])
        answers.cost_nano_usd = sum(
            task.result() for task in finished if not task.cancelled() and task.exception() is None
        )
        if late:
            answers.reason = f"{len(late)} of {len(tasks)} answers were not there in time"
        return answers

    def _task(self, call: Call, question: Question) -> asyncio.Task[int]:
        """The task that asks about a text, shared by concurrent calls that carry the same text: the first one pays."""
        key = (call.principal.project, self._rules.model or "", question.request.key)
        running = self._calls_in_flight.get(key)
        if running is not None:
            return asyncio.create_task(_wait_at_no_cost(running))
        task = self._calls_in_flight[key] = asyncio.create_task(self._answer(call, question, key), name="condensing")
        task.add_done_callback(lambda _: self._calls_in_flight.pop(key, None))
        return task

    async def _answer(self, call: Call, question: Question, key: Key) -> int:
        """Ask, keep the answer, and return its cost in nano-USD."""
        model = key[1]
        text, cost = None, 0
        try:
            charged = await self._model_calls.ask_for(
                call, model, {"model": model, **question.body}, question.demand, "condense"
            )
            if charged is not None:
                text, cost = text_of(charged.body), charged.cost_nano_usd
        except Exception:  # noqa: BLE001 - condensing is an extra: whatever goes wrong with it, calls go on
            _log.warning("text_not_condensed", exc_info=True)
        if text is None:
            self._failed[key] = self._clock_ms() + _RETRY_MS
        else:
            self._answers[key] = text
        return cost

    async def _has_room(self, call: Call, questions: Sequence[Question], spare: Amount) -> bool:
        """Whether the questions and `spare` fit together. Each question is still reserved by itself."""
        needed = spare
        for question in questions:
            needed += question.demand.amount(question.demand.output_tokens_max)
        try:
            balances = await self._ledger.balances(call.principal.project, [hold.account for hold in call.chain.holds])
        except LedgerUnavailable:
            return False
        return fits(call.chain, balances, needed)


async def _wait_at_no_cost(running: asyncio.Task[int]) -> int:
    """Waits for another call's question, at no cost. Cancelling this does not cancel that question."""
    await asyncio.wait({running})
    return 0


def fits(chain: Chain, balances: Sequence[Balance], needed: Amount) -> bool:
    """Whether every enforced limit of the chain has this much left."""
    for link, balance in zip(chain.links, balances, strict=True):
        limit = limit_in_force(link.hold, balance)
        total = balance.settled + balance.reserved + needed
        if link.hold.enforce and any(
            total.of(unit) > limit_value for unit in UNITS if (limit_value := limit.of(unit)) is not None
        ):
            return False
    return True


def text_of(body: bytes | None) -> str | None:
    """The text of a complete chat answer, or None. A truncated one would lose content that no check notices."""
    try:
        choice = orjson.loads(body or b"")["choices"][0]
        content = choice["message"]["content"]
    except (orjson.JSONDecodeError, LookupError, TypeError):
        return None
    is_complete = choice.get("finish_reason") in ("stop", None)
    return content if isinstance(content, str) and content.strip() and is_complete else None
