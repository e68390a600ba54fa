"""The choice of the texts that a lossy strategy shortens, by how much, and in which order."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from policies.compression.cutting import CutCache, CutConstraints, shorten_to_share, shorten_to_tokens
from policies.compression.draft import CountTokens, Draft, LaterMessages, LaterNeeds, later_needs
from policies.compression.duplicates import referenced_lines
from policies.compression.markers import is_receipted
from policies.compression.policy import TARGET_RATIO_MIN, Aggressiveness, CompressionPolicy, Strategy
from policies.compression.segments import Origin
from policies.values import value_class

# Cutting smaller texts saves little and costs sense. Texts by people are orders; only pasted documents are that long.
_TOKENS_MIN = MappingProxyType({Origin.TOOL: 100, Origin.ASSISTANT: 200, Origin.USER: 500})
_ORIGIN_ORDER = (Origin.TOOL, Origin.ASSISTANT, Origin.USER)
# The next step works on the newest results, so this many of them are cut only half as deep.
_MILD_RESULTS = MappingProxyType({Aggressiveness.LOW: 3, Aggressiveness.MEDIUM: 1, Aggressiveness.HIGH: 0})
_SHARE_MARGIN = 1.05  # characters and tokens are not quite proportional
CallTexts = Sequence[tuple[int, str]]


def candidates(draft: Draft, policy: CompressionPolicy) -> list[int]:
    """The texts that may be shortened, in the order to do it: tool results first, oldest first."""
    shortenable = [
        number
        for number, segment in enumerate(draft.segments)
        if not segment.fixed
        and draft.tokens[number] >= _TOKENS_MIN.get(segment.origin, draft.tokens[number] + 1)
        and not (segment.exact and policy.aggressiveness is Aggressiveness.LOW)
        and not is_receipted(draft.texts[number])
    ]
    return sorted(shortenable, key=lambda number: (_ORIGIN_ORDER.index(draft.segments[number].origin), number))


def cut_by_ratio(
    draft: Draft, policy: CompressionPolicy, count: CountTokens, calls: CallTexts, instruction: str, cache: CutCache
) -> None:
    """Shorten each candidate, newest first, so that what it must keep is known when its turn comes.

    Each decision is independent: texts that an earlier pass has shortened, which have receipts, do not affect others.
    """
    shortenable = set(candidates(draft, policy))
    shares = _shares(draft, policy)
    later = LaterMessages(draft, calls)
    shortener = _Shortener(policy, count, instruction, cache)
    for number in range(len(draft.segments) - 1, -1, -1):
        text = draft.texts[number]
        later_need = later.needs(number, draft.message_index(number), text)
        was_cut = number in shortenable and shortener.cut(
            draft, number, text, shares[number], later_need, keep_relevant=True
        )
        later.add_earlier(number, draft.texts[number], is_changed=was_cut)


def cut_to_target(
    draft: Draft,
    policy: CompressionPolicy,
    count: CountTokens,
    calls: CallTexts,
    instruction: str,
    tokens_max: int,
    cache: CutCache,
) -> None:
    """Shorten candidates in order until all texts together have at most `tokens_max` tokens, or no more is possible.

    In the first round no text is cut below the policy's ratio. The next round may cut each to a tenth, including texts that
    others refer to: a reference to a gap is better than a refused call. Only in the last round, what is asked about is
    dropped, too.
    """
    needs = later_needs(draft, calls)
    uncut = draft.copy()
    shortener = _Shortener(policy, count, instruction, cache)
    for floor, keep_relevant in ((policy.target_ratio, True), (TARGET_RATIO_MIN, True), (TARGET_RATIO_MIN, False)):
        for number in candidates(uncut, policy):
            over = draft.total_tokens - tokens_max
            if over <= 0:
                return
            target_tokens = draft.tokens[number] - over
            shortener.fit(draft, number, uncut, floor, target_tokens, needs[number], keep_relevant=keep_relevant)
        needs = {number: replace(need, blocks=()) for number, need in needs.items()}


@value_class
class _Shortener:
    """What all cuts of a chat have in common."""

    policy: CompressionPolicy
    count: CountTokens
    instruction: str
    cache: CutCache

    def cut(
        self, draft: Draft, number: int, text: str, share: float, later_need: LaterNeeds, *, keep_relevant: bool
    ) -> bool:
        """Put the text, shortened to a share of itself, into the draft if that saves tokens."""
        cut = shorten_to_share(
            text, share, self._strategy, self._constraints(text, later_need, keep_relevant), self.cache
        )
        return cut is not None and draft.replace_if_shorter(str(self._strategy), number, cut, self.count)

    def fit(
        self,
        draft: Draft,
        number: int,
        uncut: Draft,
        floor: float,
        tokens_max: int,
        later_need: LaterNeeds,
        *,
        keep_relevant: bool,
    ) -> None:
        """Put the text, shortened to a number of tokens or at most to a share of itself, into the draft if that saves tokens."""
        text = uncut.texts[number]
        share = max(floor, 1 - _SHARE_MARGIN * (1 - tokens_max / uncut.tokens[number]))
        constraints = self._constraints(text, later_need, keep_relevant)
        cut = shorten_to_tokens(text, share, floor, self._strategy, constraints, tokens_max, self.count, self.cache)
        if cut is not None:
            draft.replace_if_shorter(str(self._strategy), number, cut, self.count)

    @property
    def _strategy(self) -> Strategy:
        return Strategy.TRUNCATE if self.policy.strategy is Strategy.TRUNCATE else Strategy.EXTRACTIVE

    def _constraints(self, text: str, later_need: LaterNeeds, keep_relevant: bool) -> CutConstraints:
        blocks = referenced_lines(text, later_need.blocks)
        return CutConstraints(
            later_need.ids, later_need.listed_ids, blocks, self.policy.min_quality, self.instruction, keep_relevant
        )


def _shares(draft: Draft, policy: CompressionPolicy) -> Mapping[int, float]:
    results = [number for number, segment in enumerate(draft.segments) if segment.origin is Origin.TOOL]
    mild_count = _MILD_RESULTS[policy.aggressiveness]
    mild = set(results[-mild_count:]) if mild_count else set()
    return {
        number: (1 + policy.target_ratio) / 2 if number in mild else policy.target_ratio
        for number in range(len(draft.segments))
    }
