"""Asking a model for uncertain intents: in the background, in batches, and kept in the store until they expire."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import text

from gateway.orchestration.intents import IntentRules, Intents
from gateway.pipeline.call import Call, Principal
from gateway.store import intents as intent_store
from gateway.store.database import Database
from gateway.tags import Tags
from gateway.wire.protocols import PROTOCOLS
from policies.settings import Settings

VAGUE = "Please proceed."
SURE = 0.999  # a threshold that no classification reaches
RULES = IntentRules(wait_ms=0, cache_ttl_ms=1_000)


class FakeModel:
    """Answers when its gate is open, and counts how many questions are in flight at once."""

    def __init__(self, answer: str | None = '{"intent": "enrich", "confidence": 0.9}') -> None:
        self.answer = answer
        self.questions: list[Sequence[Mapping[str, Any]]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.at_once = self.most_at_once = 0

    async def ask(self, messages: Sequence[Mapping[str, Any]]) -> str | None:
        self.questions.append(messages)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await self.gate.wait()
        await asyncio.sleep(0.01)
        self.at_once -= 1
        return self.answer


class Clock:
    def __init__(self) -> None:
        self.ms = 1_000_000

    def __call__(self) -> int:
        return self.ms


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(f"sqlite:///{tmp_path}/store.db")
    await database.open()
    await database.migrate(0)
    yield database
    await database.close()


def call_of(step: str = "work-on-it", prompt: str = VAGUE, project: str = "p") -> Call:
    return call_with_body("/v1/chat/completions", step, project, messages=[{"role": "user", "content": prompt}])


def call_with_body(path: str, step: str = "work-on-it", project: str = "p", **fields: Any) -> Call:
    protocol = PROTOCOLS[path]
    request = protocol.parse(orjson.dumps({"model": "m", **fields}))
    return Call("c", protocol, Principal("", "k", project), request, Tags(workflow="wf", run="r", step=step), "r")


async def started(store: Database, model: FakeModel, clock: Clock, rules: IntentRules = RULES) -> Intents:
    intents = Intents(store, model.ask, rules, clock)
    await intents.start()
    return intents


async def settled(model: FakeModel, count: int) -> None:
    """Waits until `count` questions were asked and the answers are kept."""
    async with asyncio.timeout(5):
        while len(model.questions) < count or model.at_once:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)


async def test_unsure_call_uses_the_guess_and_the_next_call_the_models_answer(store: Database) -> None:
    model, clock = FakeModel(), Clock()
    intents = await started(store, model, clock)
    first = await intents.of(call_of(), None, SURE)
    assert first.source in ("model", "fallback", "rules")
    await settled(model, 1)
    second = await intents.of(call_of(), None, SURE)
    third = await intents.of(call_of(), None, SURE)
    assert (second.intent, second.confidence, second.source) == ("enrich", 0.9, "cache")
    assert third == second
    assert len(model.questions) == 1
    await intents.stop()


async def test_learned_intents_are_not_shared_between_projects(store: Database) -> None:
    """The answer depends on the prompt, which may differ between projects with equal names of workflow and step."""
    model, clock = FakeModel(), Clock()
    intents = await started(store, model, clock)
    await intents.of(call_of(prompt="Say 'enrich', whatever this is."), None, SURE)
    await settled(model, 1)
    other = call_of(project="q")
    assert intents.preview(other, None, SURE).source != "cache"
    assert (await intents.of(other, None, SURE)).source != "cache"
    await settled(model, 2)
    assert (await intents.of(other, None, SURE)).source == "cache"
    assert len(await intent_store.latest(store, clock())) == 2
    await intents.stop()


async def test_questions_are_limited_to_100_a_minute_per_project(store: Database) -> None:
    """Otherwise a new step name in each call would cost the operator a question each."""
    model, clock = FakeModel(), Clock()
    intents = await started(store, model, clock)
    names = ["".join(letters) for letters in itertools.product("bcdfgklm", repeat=3)][:150]
    for name in names:
        await intents.of(call_of(f"work-{name}"), None, SURE)
    await intents.of(call_of(project="q"), None, SURE)
    await settled(model, 101)
    assert len(model.questions) == 101, "100 of one project, and one of the other"
    clock.ms += 60_000
    await intents.of(call_of(f"work-{names[-1]}"), None, SURE)
    await settled(model, 102)
    await intents.stop()


async def test_unstorable_characters_are_removed_from_reasoning(store: Database) -> None:
    model, clock = (
        FakeModel(r'{"intent": "enrich", "confidence": 0.9, "reasoning": "half \ud83d and\u0000 none"}'),
        Clock(),
    )
    intents = await started(store, model, clock)
    for number, step in enumerate(("work-on-it", "work-on-that"), 1):
        await intents.of(call_of(step), None, SURE)
        await settled(model, number)
    latest = await intent_store.latest(store, clock())
    assert [learned.reasoning for learned in latest] == ["half  and none"] * 2
    await intents.stop()


async def test_system_prompt_in_parts_is_classified(store: Database) -> None:
    intents = await started(store, FakeModel(), Clock())
    classified = []
    for order in ("Translate the text into German.", "Summarize the text in three sentences."):
        system = [{"type": "text", "text": order, "cache_control": {"type": "ephemeral"}}]
        messages = [{"role": "user", "content": "Hi."}]
        call = call_with_body("/v1/messages", max_tokens=9, system=system, messages=messages)
        classified.append((await intents.of(call, None, 0.3)).intent)
    assert classified == ["transform", "summarize"]
    await intents.stop()


@pytest.mark.parametrize(
    "beside",
    [
        {"messages": []},
        {"messages": ["x"]},
        {"messages": {}},
        {"response_format": {"type": {}}},
        {"text": {"type": [[]]}},
    ],
)
async def test_malformed_fields_of_other_protocols_do_not_affect_the_intent(
    store: Database, beside: Mapping[str, Any]
) -> None:
    intents = await started(store, FakeModel(), Clock())
    call = call_with_body("/v1/responses", input="Summarize the text in three sentences.", **beside)
    assert (await intents.of(call, None, 0.3)).intent == "summarize"
    await intents.stop()


async def test_confident_or_declared_intent_is_never_asked(store: Database) -> None:

    model = FakeModel()
    intents = await started(store, model, Clock())
    await intents.of(call_of("summarize", "Summarize the following report in three sentences."), None, 0.7)
    await intents.of(call_of(), "send", SURE)
    await asyncio.sleep(0.05)
    assert model.questions == []
    await intents.stop()


async def test_at_most_5_questions_are_asked_at_once(store: Database) -> None:
    model, clock = FakeModel(), Clock()
    model.gate.clear()
    intents = await started(store, model, clock)
    await intents.of(call_of("first-of-all"), None, SURE)
    await asyncio.sleep(0.05)  # in flight alone, since nothing else was waiting
    for number in range(12):
        await intents.of(call_of(f"work-{'abcdefghijkl'[number] * 3}"), None, SURE)
    model.gate.set()
    await settled(model, 13)
    assert model.most_at_once == 5
    await intents.stop()


async def test_concurrent_calls_of_a_step_ask_once(store: Database) -> None:
    model, clock = FakeModel(), Clock()
    model.gate.clear()
    intents = await started(store, model, clock)
    for _ in range(5):
        await intents.of(call_of(), None, SURE)
    model.gate.set()
    await settled(model, 1)
    assert len(model.questions) == 1
    await intents.stop()


async def test_call_waits_for_the_answer_if_wait_ms_allows(store: Database) -> None:
    model, clock = FakeModel(), Clock()
    intents = await started(store, model, clock, IntentRules(wait_ms=500, cache_ttl_ms=1_000))
    first = await intents.of(call_of(), None, SURE)
    second = await intents.of(call_of(), None, SURE)
    assert [(tag.intent, tag.source) for tag in (first, second)] == [("enrich", "llm"), ("enrich", "cache")]
    await intents.stop()


async def test_call_waits_at_most_wait_ms(store: Database) -> None:
    model, clock = FakeModel(), Clock()
    model.gate.clear()
    intents = await started(store, model, clock, IntentRules(wait_ms=30, cache_ttl_ms=1_000))
    async with asyncio.timeout(2):
        tag = await intents.of(call_of(), None, SURE)
    assert tag.source != "llm"
    model.gate.set()
    await intents.stop()


async def test_answers_survive_a_restart_and_expire(store: Database) -> None:
    model, clock = FakeModel(), Clock()
    intents = await started(store, model, clock)
    await intents.of(call_of(), None, SURE)
    await settled(model, 1)
    await intents.stop()
    again = FakeModel('{"intent": "filter", "confidence": 0.8}')
    intents = await started(store, again, clock)
    assert (await intents.of(call_of(), None, SURE)).intent == "enrich"
    clock.ms += 1_001
    assert (await intents.of(call_of(), None, SURE)).source != "cache"
    await settled(again, 1)
    assert (await intents.of(call_of(), None, SURE)).intent == "filter"
    await intents.stop()


async def test_answer_to_another_process_is_not_asked_again(store: Database) -> None:
    clock, ours, theirs = Clock(), FakeModel(), FakeModel()
    here, there = await started(store, ours, clock), await started(store, theirs, clock)
    await there.of(call_of(), None, SURE)
    await settled(theirs, 1)
    await here.of(call_of(), None, SURE)
    await asyncio.sleep(0.1)
    assert (await here.of(call_of(), None, SURE)).source == "cache"
    assert ours.questions == []
    await here.stop()
    await there.stop()


@pytest.mark.parametrize("answer", [None, "I do not know", '{"intent": "dance"}'])
async def test_missing_or_invalid_answer_is_asked_again_only_after_a_minute(
    store: Database, answer: str | None
) -> None:
    model, clock = FakeModel(answer), Clock()
    intents = await started(store, model, clock)
    first = await intents.of(call_of(), None, SURE)
    await settled(model, 1)
    for _ in range(3):
        assert await intents.of(call_of(), None, SURE) == first
    assert len(model.questions) == 1
    clock.ms += 60_001
    await intents.of(call_of(), None, SURE)
    await settled(model, 2)
    assert await intent_store.latest(store, clock.ms) == []
    await intents.stop()


async def test_questions_are_asked_although_the_store_refuses_to_be_read(store: Database) -> None:
    model = FakeModel()
    intents = await started(store, model, Clock())
    async with store.begin() as connection:
        await connection.execute(text("DROP TABLE intent_cache"))
    for step in ("work-on-it", "work-on-that"):
        await intents.of(call_of(step), None, SURE)
        await settled(model, 1 if step == "work-on-it" else 2)
    await intents.stop()


async def test_declared_prompt_is_classified_by_the_model_too(store: Database) -> None:
    model, clock = FakeModel(), Clock()
    intents = await started(store, model, clock)
    settings = Settings.from_values({"orchestration_intent_classification_confidence_threshold": SURE})
    step = {"id": "work-on-it", "prompt": VAGUE}
    assert intents.profile(step, "wf", settings, project="p").classification.source != "cache"
    await settled(model, 1)
    learned = intents.profile(step, "wf", settings, project="p").classification
    assert (learned.intent, learned.source) == ("enrich", "cache")
    assert intents.profile(step, "wf", settings, project="q", asks=False).classification.source != "cache"
    assert intents.profile({**step, "intent": "send"}, "wf", settings, project="p").classification.source == "declared"
    await intents.stop()
