"""Compression of a chat: first what is lossless, then as much of what is asked for as quality allows.

    structural ─▶ memory ─▶ template ─▶ duplicates ─▶ semantic | truncate | extractive ─▶ measured, or the original

Every stage replaces a text only by one with fewer tokens, so a chat never grows. The process is deterministic, and a second
pass changes nothing. No stage interprets the content of a text as an instruction.
"""

from collections.abc import Mapping, Sequence
from math import floor
from types import MappingProxyType

from policies.compression.cutting import CutCache
from policies.compression.data_blocks import with_data_minified
from policies.compression.draft import CountTokens, Draft, later_needs
from policies.compression.duplicates import without_duplicates
from policies.compression.lossy import candidates, cut_by_ratio, cut_to_target
from policies.compression.markers import is_receipted
from policies.compression.memory import MEMORY_TOKENS_MAX, shorten_memory
from policies.compression.policy import Compressed, CompressionPolicy, Strategy
from policies.compression.relevance import answer_match
from policies.compression.scoring import ContentReader, QualityScorer, quality
from policies.compression.segments import Message, Origin, call_texts, instruction_of, segments_of, with_texts
from policies.compression.semantic import SemanticRequest, accept_condensed, semantic_key, semantic_request
from policies.compression.structural import compress_structure, readable_text
from policies.compression.template import without_boilerplate
from policies.compression.text_kind import TextKind, kind_of

_SEMANTIC_TOKENS_MIN = 200  # condensing less costs more than it saves
# Measured (docs/compression.md): nine in ten questions find a passage that has about half of their words, weighted by rarity;
# of goals, one in eleven does.
_ANSWER_MATCH_MIN = 0.5
_NOTHING: Mapping[str, str] = MappingProxyType({})


def compress_chat(
    messages: Sequence[Message],
    policy: CompressionPolicy,
    count: CountTokens,
    *,
    target_tokens: int | None = None,
    prompt_tokens: int | None = None,
    intent: str = "",
    memory_tokens_max: int = MEMORY_TOKENS_MAX,
    condensed: Mapping[str, str] = _NOTHING,
) -> Compressed:
    """The compressed chat; `messages` is None if the original has to be used.

    `count` counts one string. `prompt_tokens` is the count of the whole request, with tools and framing; if it is given, all
    figures include them, otherwise they are the tokens of the texts alone. With `target_tokens` (in the same measure) texts
    are shortened until the prompt fits, oldest tool results first; without it, each text by the policy's ratio. A prompt that
    already fits is left alone. `condensed` has the answers to `semantic_requests` by their keys. Arguments are not modified.
    """
    policy = policy.effective
    segments = segments_of(messages)
    draft = Draft.of(segments, count)
    texts_before = draft.total_tokens
    overhead_tokens = 0 if prompt_tokens is None else max(0, prompt_tokens - texts_before)
    tokens_before = texts_before + overhead_tokens
    refusal = _refusal(draft, policy, tokens_before, target_tokens)
    if refusal:
        return Compressed(None, tokens_before, tokens_before, 1.0, (), refusal)
    instruction = instruction_of(messages)
    _apply_lossless_stages(draft, policy, count, intent, instruction, memory_tokens_max)
    lossless = draft.copy()
    texts_max = None if target_tokens is None else target_tokens - overhead_tokens
    cache = CutCache()
    _apply_lossy_strategy(draft, policy, count, messages, intent, instruction, texts_max, condensed, cache)
    lossy_quality = _lossy_quality(lossless, draft, instruction, cache.reader)
    if lossy_quality < policy.min_quality:
        draft, lossy_quality = lossless, 1.0
    score = lossy_quality * _lossless_quality([segment.text for segment in segments], lossless, instruction)
    return _result(messages, draft, policy, tokens_before, score, target_tokens)


def semantic_requests(
    messages: Sequence[Message],
    policy: CompressionPolicy,
    count: CountTokens,
    *,
    intent: str = "",
    memory_tokens_max: int = MEMORY_TOKENS_MAX,
) -> tuple[SemanticRequest, ...]:
    """The questions for a cheap model, to be asked before `compress_chat` with the semantic strategy and the same arguments."""
    if policy.effective.strategy is not Strategy.SEMANTIC:
        return ()
    draft = Draft.of(segments_of(messages), count)
    _apply_lossless_stages(draft, policy, count, intent, instruction_of(messages), memory_tokens_max)
    requests = {}
    for number in _condensable(draft, policy):
        text, target = draft.texts[number], _semantic_target(draft, number, policy)
        key = semantic_key(text, intent, target)
        requests[key] = SemanticRequest(key, semantic_request(text, intent, target), target)
    return tuple(requests.values())


def text_tokens(messages: Sequence[Message], count: CountTokens) -> int:
    """The tokens of all texts of a chat, as `compress_chat` measures them without `prompt_tokens`."""
    return sum(count(segment.text) for segment in segments_of(messages))


def _refusal(draft: Draft, policy: CompressionPolicy, tokens: int, target_tokens: int | None) -> str:
    if policy.strategy is Strategy.NONE:
        return "the strategy is none"
    if target_tokens is not None and tokens <= target_tokens:
        return "it fits already"
    if all((segment.fixed and not segment.holds_data) or not segment.text for segment in draft.segments):
        return "every text is protected"
    return ""


def _apply_lossless_stages(
    draft: Draft, policy: CompressionPolicy, count: CountTokens, intent: str, instruction: str, memory_tokens_max: int
) -> None:
    """The stages that lose nothing a reader would miss, and the size limit of the memory."""
    for number in _changeable(draft):
        text = compress_structure(draft.texts[number], policy.aggressiveness, exact=draft.segments[number].exact)
        draft.replace_if_shorter("structural", number, text, count)
    for number, segment in enumerate(draft.segments):
        if segment.holds_data:
            draft.replace_if_shorter("structural", number, with_data_minified(segment.text), count)
    _limit_memory(draft, count, instruction, memory_tokens_max)
    if policy.strategy is Strategy.TEMPLATE:
        for number in _changeable(draft):
            if not draft.segments[number].exact:
                text = compress_structure(without_boilerplate(draft.texts[number], intent), policy.aggressiveness)
                draft.replace_if_shorter("template", number, text, count)
    for number, text in enumerate(without_duplicates(draft.segments, draft.texts)):
        draft.replace_if_shorter("duplicates", number, text, count)


def _changeable(draft: Draft) -> list[int]:
    """The texts that may be changed and were not shortened in an earlier pass."""
    return [
        number
        for number, segment in enumerate(draft.segments)
        if not segment.fixed and not is_receipted(draft.texts[number])
    ]


def _limit_memory(draft: Draft, count: CountTokens, instruction: str, tokens_max: int) -> None:
    """Shorten all memory together to its size limit, each part in proportion."""
    numbers = [number for number in _changeable(draft) if draft.segments[number].origin is Origin.MEMORY]
    total = sum(draft.tokens[number] for number in numbers)
    if total <= tokens_max:
        return
    for number in numbers:
        share = tokens_max * draft.tokens[number] // total
        draft.replace_if_shorter(
            "memory", number, shorten_memory(draft.texts[number], share, count, instruction), count
        )


def _apply_lossy_strategy(
    draft: Draft,
    policy: CompressionPolicy,
    count: CountTokens,
    messages: Sequence[Message],
    intent: str,
    instruction: str,
    texts_max: int | None,
    condensed: Mapping[str, str],
    cache: CutCache,
) -> None:
    if policy.strategy in (Strategy.STRUCTURAL, Strategy.TEMPLATE):
        return
    calls = call_texts(messages)
    if policy.strategy is Strategy.SEMANTIC:
        _apply_semantic(draft, policy, count, calls, intent, instruction, condensed)
    if texts_max is not None:
        cut_to_target(draft, policy, count, calls, instruction, texts_max, cache)
    elif policy.strategy is Strategy.TRUNCATE or _can_extract(draft, policy, instruction):
        cut_by_ratio(draft, policy, count, calls, instruction, cache)


def _can_extract(draft: Draft, policy: CompressionPolicy, instruction: str) -> bool:
    """Whether extraction has a question to go by. Without one that some passage answers, what will be needed is a guess."""
    if policy.strategy is not Strategy.EXTRACTIVE:
        return False
    return answer_match([draft.texts[number] for number in candidates(draft, policy)], instruction) >= _ANSWER_MATCH_MIN


def _apply_semantic(
    draft: Draft,
    policy: CompressionPolicy,
    count: CountTokens,
    calls: Sequence[tuple[int, str]],
    intent: str,
    instruction: str,
    condensed: Mapping[str, str],
) -> None:
    needs = later_needs(draft, calls)
    for number in _condensable(draft, policy):
        text = draft.texts[number]
        answer = condensed.get(semantic_key(text, intent, _semantic_target(draft, number, policy)))
        condensed_text = (
            accept_condensed(text, answer, needs[number].ids, policy.min_quality, instruction) if answer else None
        )
        if condensed_text is not None:
            draft.replace_if_shorter("semantic", number, condensed_text, count)


def _condensable(draft: Draft, policy: CompressionPolicy) -> list[int]:
    """Long prose, logs, tables and pages. Code and JSON would become invalid if a model rewrote them."""
    return [
        number
        for number in candidates(draft, policy)
        if draft.tokens[number] >= _SEMANTIC_TOKENS_MIN
        and not draft.segments[number].exact
        and "```" not in draft.texts[number]
        and kind_of(draft.texts[number]) not in (TextKind.JSON, TextKind.CODE)
    ]


def _semantic_target(draft: Draft, number: int, policy: CompressionPolicy) -> int:
    return max(1, int(draft.tokens[number] * policy.target_ratio))


def _lossless_quality(texts_before: Sequence[str], draft: Draft, instruction: str) -> float:
    """The quality after the lossless stages, over all changed texts together: these stages change how things are said."""
    return quality(*_changed_texts(texts_before, draft), instruction)


def _lossy_quality(lossless: Draft, draft: Draft, instruction: str, reader: ContentReader) -> float:
    """The quality after the lossy stages. They are judged by themselves, so that a second pass comes to the same result."""
    text_before, text_after = _changed_texts(lossless.texts, draft)
    if "semantic" in draft.saved:  # in other words, so no sentence is the same
        return quality(text_before, text_after, instruction)
    return QualityScorer.of(text_before, instruction, reader).score_cut(text_after)


def _changed_texts(texts_before: Sequence[str], draft: Draft) -> tuple[str, str]:
    """The changed texts, before and after. Memory is excluded, because its size is a limit that somebody set."""
    numbers = [number for number, segment in enumerate(draft.segments) if segment.origin is not Origin.MEMORY]
    changed = [number for number in numbers if draft.texts[number] != texts_before[number]]
    if not changed:
        return "", ""
    changed_texts = [draft.texts[number] for number in changed]
    if "duplicates" in draft.saved:  # the target of a reference is still elsewhere in the chat
        changed_texts = draft.texts
    originals = [texts_before[number] for number in changed]
    return "\n".join(map(readable_text, originals)), "\n".join(map(readable_text, changed_texts))


def _result(
    messages: Sequence[Message],
    draft: Draft,
    policy: CompressionPolicy,
    tokens_before: int,
    score: float,
    target_tokens: int | None,
) -> Compressed:
    changed = draft.changed()
    if not changed:
        return Compressed(None, tokens_before, tokens_before, 1.0, (), "nothing to compress")
    if score < policy.min_quality:
        reason = f"quality {score:.2f} is below {policy.min_quality:.2f}"
        return Compressed(None, tokens_before, tokens_before, score, (), reason)
    tokens_after = tokens_before - sum(draft.saved.values())
    reason = f"{tokens_before - tokens_after} of {tokens_before} tokens saved"
    if target_tokens is not None and tokens_after > target_tokens:
        reason += f", {tokens_after - target_tokens} more than wanted are left"
    return Compressed(
        with_texts(messages, {draft.segments[number].place: draft.texts[number] for number in changed}),
        tokens_before,
        tokens_after,
        floor(score * 1000) / 1000,  # rounded down, so that 1.0 means that nothing was lost
        tuple(f"{stage}={tokens}" for stage, tokens in draft.saved.items()),
        reason,
    )
