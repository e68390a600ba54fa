"""The intent of each tagged call: from its header, declaration, the learned cache, the rules or the trained model.

A result is reused while what identifies the step is unchanged, so most calls cost one look-up. A language model may be asked about unclear
steps, in the background: the current call goes on with the best guess, and later ones get the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

import structlog
from cachetools import LRUCache

from gateway.pipeline.call import Call, IntentTag
from gateway.runs.plan import StepProfile, profile_as, profile_by_words, step_text
from gateway.store import intents as intent_store
from gateway.store.database import Database, StoreError
from gateway.store.intents import LearnedIntent
from gateway.tasks import cancel
from policies.classify import (
    Classification,
    StepText,
    classify,
    content_key,
    llm_prompt,
    load_classifier,
    parse_llm_answer,
    step_text_from_chat,
)
from policies.classify.features import is_generic_name
from policies.intents import Intent
from policies.settings import Settings

_log = structlog.get_logger(__name__)
_CACHED_MAX: Final = 20_000
_LEARNED_MAX: Final = 50_000
_PROJECTS_MAX: Final = 1_000
_BATCH: Final = 5
_WAITING_MAX: Final = 500
# The operator pays for questions, and a caller could raise one with each new step name, even if its calls are refused.
_QUESTIONS_PER_MINUTE_MAX: Final = 100  # of a project
# When an unanswered question may be asked again, if calls still raise it.
_RETRY_MS: Final = 60_000
# Whether a step's name says nothing: then the prompt's text is part of the step's identity.
_is_generic: Final = lru_cache(maxsize=_CACHED_MAX)(is_generic_name)

Ask = Callable[[Sequence[Mapping[str, Any]]], Awaitable[str | None]]


@dataclass(frozen=True, slots=True)
class IntentRules:
    wait_ms: int  # how long a call waits for the model's answer; 0: not at all
    cache_ttl_ms: int


@dataclass(frozen=True, slots=True)
class _Question:
    project: str
    key: str
    step: StepText


@dataclass(frozen=True, slots=True)
class _PendingQuestion:
    """An open question. `context` is that of the call that raised it, so that it belongs to that call's trace."""

    done: asyncio.Event
    context: Context


@dataclass(slots=True)
class _CachedIntent:
    """A result that is reused. `key` is set while a language model might know better; then learned answers are looked up."""

    answer: Classification
    key: str | None = None
    until_ms: int | None = None


@dataclass(frozen=True, slots=True)
class _Profiled:
    """The profile of a declared step by its own words, and the question for a model if they say too little."""

    profile: StepProfile
    question: _Question | None = None


class Intents:
    """`ask` None: there is no model to ask, and the best guess is final. `on_classified` is called with every new classification."""

    def __init__(
        self,
        store: Database,
        ask: Ask | None,
        rules: IntentRules,
        clock_ms: Callable[[], int],
        on_classified: Callable[[Call, Classification], None] = lambda _call, _classification: None,
    ) -> None:
        self._store = store
        self._ask = ask
        self._rules = rules
        self._clock_ms = clock_ms
        self._on_classified = on_classified
        self._cached: LRUCache[tuple[object, ...], _CachedIntent] = LRUCache(_CACHED_MAX)
        self._profiles: LRUCache[tuple[object, ...], _Profiled] = LRUCache(_CACHED_MAX)
        self._learned: LRUCache[str, LearnedIntent] = LRUCache(_LEARNED_MAX)
        self._questions: asyncio.Queue[_Question] = asyncio.Queue(_WAITING_MAX)
        self._open_questions: dict[str, _PendingQuestion] = {}
        self._raised: LRUCache[tuple[str, int], int] = LRUCache(_PROJECTS_MAX)  # (project, minute) → questions
        self._failed: LRUCache[str, int] = LRUCache(_LEARNED_MAX)  # key → when it may be asked again, ms
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await asyncio.to_thread(load_classifier)
        try:
            for learned in await intent_store.latest(self._store, self._clock_ms()):
                self._learned[learned.key] = learned
        except StoreError as error:
            _log.warning("learned_intents_not_loaded", error=str(error))
        if self._ask is not None:
            self._task = asyncio.create_task(self._answer_questions(), name="intents")

    async def stop(self) -> None:
        await cancel(self._task)

    def forget(self) -> None:
        """Drop the results that were found under old settings."""
        self._cached.clear()
        self._profiles.clear()

    async def of(self, call: Call, declared: str | None, threshold: float) -> IntentTag:
        """The intent of a call. Cheap if the step was seen before; takes at most `wait_ms` if a model is asked and may be waited for."""
        identity = _identity(call, declared)
        cached = self._cached.get(identity)
        answer = None if cached is None else self._if_valid(cached)
        if answer is None:
            cached = await self._classified(call, call.tags.intent, declared, threshold)
            self._cached[identity] = cached
            answer = cached.answer
            self._on_classified(call, answer)
            if cached.until_ms is not None and answer.source == "llm":
                cached.answer = replace(answer, source="cache")  # for the calls to come
        return IntentTag(answer.intent, answer.confidence, answer.source)

    def preview(self, call: Call, declared: str | None, threshold: float) -> Classification:
        """What `of` would return now, without asking a model or remembering anything."""
        cached = self._cached.get(_identity(call, declared))
        answer = None if cached is None else self._if_valid(cached)
        if answer is not None:
            return answer
        step = step_text_of(call.protocol.name, call.request.body, call.tags.step, call.tags.workflow)
        declared_intent = Intent(declared) if declared else None
        learned = None if declared_intent or call.tags.intent else self._remembered(_key(call.principal.project, step))
        return learned or classify(
            step, header=call.tags.intent, declared=declared_intent, confidence_threshold=threshold
        )

    def profile(
        self, step: Mapping[str, Any], workflow: str, settings: Settings, *, project: str, asks: bool = True
    ) -> StepProfile:
        """The profile of a declared step by its own words. Never waits; a model may be asked in the background."""
        profiled = self._profiled(step, workflow, settings, project)
        threshold = settings.intent_classification_confidence_threshold
        if profiled.question is None or profiled.profile.classification.confidence >= threshold:
            return profiled.profile
        learned = self._remembered(profiled.question.key)
        if learned is not None:
            return StepProfile(learned, profiled.profile.complexity)
        if asks:
            self._enqueue(profiled.question)
        return profiled.profile

    def _profiled(self, step: Mapping[str, Any], workflow: str, settings: Settings, project: str) -> _Profiled:
        """The cached profile of a declared step, which is the same in every run of its workflow."""
        words = (step.get(name) for name in ("id", "intent", "prompt", "description", "system"))
        shapes = (repr(step[name]) for name in ("tools", "response_format") if step.get(name))
        identity = (project, workflow, settings.intent_classification_confidence_threshold, *words, *shapes)
        profiled = self._profiles.get(identity)
        if profiled is None:
            profiled = self._profiles[identity] = _read(step, workflow, settings, project)
        return profiled

    def _if_valid(self, cached: _CachedIntent) -> Classification | None:
        """The result if it is still valid; None if it has expired or a model has answered since."""
        if cached.until_ms is not None and cached.until_ms <= self._clock_ms():
            return None
        return None if cached.key is not None and cached.key in self._learned else cached.answer

    async def _classified(
        self, call: Call, header: str | None, declared: str | None, threshold: float
    ) -> _CachedIntent:
        step = step_text_of(call.protocol.name, call.request.body, call.tags.step, call.tags.workflow)
        if header is not None or declared is not None:
            declared_intent = Intent(declared) if declared else None
            return _CachedIntent(
                classify(step, header=header, declared=declared_intent, confidence_threshold=threshold)
            )
        key = _key(call.principal.project, step)
        learned = self._remembered(key)
        if learned is not None:
            return _CachedIntent(learned, until_ms=self._learned[key].expires_at_ms)
        guess = classify(step, confidence_threshold=threshold)
        if guess.confidence >= threshold or self._ask is None:
            return _CachedIntent(guess)
        self._enqueue(_Question(call.principal.project, key, step))
        if self._rules.wait_ms:
            await self._wait_for(key)
            learned = self._remembered(key)
            if learned is not None:
                return _CachedIntent(replace(learned, source="llm"), until_ms=self._learned[key].expires_at_ms)
        # The guess expires, so that the question is asked again if it was not answered.
        return _CachedIntent(guess, key, self._clock_ms() + _RETRY_MS)

    def _remembered(self, key: str) -> Classification | None:
        learned = self._learned.get(key)
        if learned is None:
            return None
        if learned.expires_at_ms <= self._clock_ms():
            del self._learned[key]
            return None
        return Classification(Intent(learned.intent), learned.confidence, "cache", learned.reasoning, ())

    def _enqueue(self, question: _Question) -> None:
        if self._ask is None or question.key in self._open_questions or self._questions.full():
            return
        if self._failed.get(question.key, 0) > self._clock_ms():
            return
        minute = question.project, self._clock_ms() // 60_000
        raised = self._raised.get(minute, 0)
        if raised >= _QUESTIONS_PER_MINUTE_MAX:
            return
        self._raised[minute] = raised + 1
        self._open_questions[question.key] = _PendingQuestion(asyncio.Event(), copy_context())
        self._questions.put_nowait(question)

    async def _wait_for(self, key: str) -> None:
        question = self._open_questions.get(key)
        if question is not None:
            try:
                async with asyncio.timeout(self._rules.wait_ms / 1000):
                    await question.done.wait()
            except TimeoutError:
                pass

    async def _answer_questions(self) -> None:
        while True:
            batch = [await self._questions.get()]
            while len(batch) < _BATCH and not self._questions.empty():
                batch.append(self._questions.get_nowait())
            await self._answer_batch(batch)

    async def _answer_batch(self, batch: Sequence[_Question]) -> None:
        try:
            known_intents = await self._known([question.key for question in batch])
            answering = (
                asyncio.create_task(self._answer(question), context=self._open_questions[question.key].context)
                for question in batch
                if question.key not in known_intents
            )
            answers = await asyncio.gather(*answering)
            learned_now = [learned for learned in answers if learned is not None]
            for learned in (*known_intents.values(), *learned_now):
                self._learned[learned.key] = learned
        finally:
            for question in batch:
                self._answered(question.key)
        await self._keep(learned_now)

    def _answered(self, key: str) -> None:
        if key not in self._learned:
            self._failed[key] = self._clock_ms() + _RETRY_MS
        question = self._open_questions.pop(key, None)
        if question is not None:
            question.done.set()

    async def _known(self, keys: Sequence[str]) -> dict[str, LearnedIntent]:
        """Answers that another process has stored already."""
        try:
            return await intent_store.get_many(self._store, keys, self._clock_ms())
        except StoreError:
            return {}
        except Exception as error:  # noqa: BLE001 - the task that asks the model must go on
            _log.warning("learned_intents_not_loaded", error=str(error))
            return {}

    async def _answer(self, question: _Question) -> LearnedIntent | None:
        assert self._ask is not None  # noqa: S101 - the task exists only with a model to ask
        try:
            text = await self._ask(llm_prompt(question.step))
            answer = parse_llm_answer(text) if text else None
        except Exception:  # noqa: BLE001 - the classifier's model is an extra: whatever goes wrong with it, calls go on
            _log.warning("intent_not_asked", exc_info=True)
            return None
        if answer is None:
            return None
        now_ms = self._clock_ms()
        expires_at_ms = now_ms + self._rules.cache_ttl_ms
        return LearnedIntent(
            question.key, answer.intent, answer.confidence, "llm", expires_at_ms, answer.reasoning, now_ms
        )

    async def _keep(self, learned: list[LearnedIntent]) -> None:
        if not learned:
            return
        try:
            await intent_store.put_many(self._store, learned)
        except Exception as error:  # noqa: BLE001 - what is learned serves here all the same, and the next answers are kept
            _log.warning("learned_intents_not_kept", error=str(error))


def _key(project: str, step: StepText) -> str:
    """Projects share nothing learned: the prompts of one would decide what becomes of another's steps of the same names."""
    return f"{project}:{content_key(step)}"


def _read(step: Mapping[str, Any], workflow: str, settings: Settings, project: str) -> _Profiled:
    if step.get("intent"):
        return _Profiled(profile_by_words(step, workflow, settings))
    text = step_text(step, workflow)
    classification = classify(text, confidence_threshold=settings.intent_classification_confidence_threshold)
    return _Profiled(profile_as(step, classification), _Question(project, _key(project, text), text))


def _identity(call: Call, declared: str | None) -> tuple[object, ...]:
    tags = call.tags
    return (call.principal.project, tags.workflow, tags.step, tags.intent, declared, *_fingerprint(call))


def _fingerprint(call: Call) -> tuple[object, ...]:
    """What tells two calls of one step apart for a classifier, without reading their text: strings hash once.

    Never raises: only the fields that a call's own protocol reads were checked.
    """
    body = call.request.body
    system = body.get("system") or body.get("instructions")
    messages = body.get("messages")
    first = messages[0] if isinstance(messages, list) and messages else None
    if system is None and isinstance(first, dict) and first.get("role") in ("system", "developer"):
        system = first.get("content")

    shape = body.get("response_format") or body.get("text")
    kind = shape.get("type") if isinstance(shape, dict) else None
    tools = body.get("tools")
    is_named = not _is_generic(call.tags.step)
    return (
        call.protocol.name,
        _text_hashes(system),
        len(tools) if isinstance(tools, list) else 0,
        kind if isinstance(kind, str) else None,
        None if is_named else _last_text(body),
    )


def _last_text(body: Mapping[str, Any]) -> object:
    messages = body.get("messages") or body.get("input") or body.get("prompt")
    if isinstance(messages, list) and messages and isinstance(messages[-1], dict):
        return _text_hashes(messages[-1].get("content"))
    return _text_hashes(messages)


def _text_hashes(content: object) -> object:
    """Hashes of a content's texts, which may be a string or a list of parts."""
    if isinstance(content, str):
        return hash(content)
    if not isinstance(content, list):
        return None
    texts = (part.get("text") for part in content if isinstance(part, dict))
    return tuple(hash(text) for text in texts if isinstance(text, str))


def step_text_of(protocol: str, body: Mapping[str, Any], step: str | None, workflow: str | None) -> StepText:
    """The classifier's input, for any text protocol: each is converted to the form of a chat request."""
    if protocol == "chat":
        return step_text_from_chat(body, step, workflow)
    if protocol == "messages":
        messages = [{"role": "system", "content": body.get("system")}, *(body.get("messages") or ())]
        return step_text_from_chat({**body, "messages": messages}, step, workflow)
    if protocol == "responses":
        input_value = body.get("input")
        input_messages = (
            [{"role": "user", "content": input_value}] if isinstance(input_value, str) else list(input_value or ())
        )
        messages = [{"role": "system", "content": body.get("instructions")}, *input_messages]
        return step_text_from_chat({"messages": messages, "tools": body.get("tools")}, step, workflow)
    prompt = body.get("prompt") or body.get("input")
    return StepText(step=step, workflow=workflow, system=None, prompt=prompt[:8000] if isinstance(prompt, str) else "")
