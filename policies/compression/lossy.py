"""The choice of the texts that a lossy strategy shortens, by how much, and in which order."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from policies.compression.cutting import Known, Need, fitted, shortened
from policies.compression.duplicates import referenced_lines
from policies.compression.markers import is_receipted
from policies.compression.policy import TARGET_RATIO_MIN, Aggressiveness, CompressionPolicy, Strategy
from policies.compression.segments import Origin
from policies.compression.stages import Count, Draft, Later, Needed, needed
from policies.values import value_class

# Cutting smaller texts saves little and costs sense. Texts by people are orders; only pasted documents are that long.
_TOKENS_MIN = MappingProxyType({Origin.TOOL: 100, Origin.ASSISTANT: 200, Origin.USER: 500})
_ORDER = (Origin.TOOL, Origin.ASSISTANT, Origin.USER)
# The next step works on the newest results, so this many of them are cut only half as deep.
_MILD_RESULTS = MappingProxyType({Aggressiveness.LOW: 3, Aggressiveness.MEDIUM: 1, Aggressiveness.HIGH: 0})
_MARGIN = 1.05  # characters and tokens are not quite proportional
Calls = Sequence[tuple[int, str]]


def candidates(draft: Draft, policy: CompressionPolicy) -> list[int]:
    """The texts that may be shortened, in the order to do it: tool results first, oldest first."""
    may = [
        number
        for number, segment in enumerate(draft.segments)
        if not segment.fixed
        and draft.tokens[number] >= _TOKENS_MIN.get(segment.origin, draft.tokens[number] + 1)
        and not (segment.exact and policy.aggressiveness is Aggressiveness.LOW)
        and not is_receipted(draft.texts[number])
    ]
    return sorted(may, key=lambda number: (_ORDER.index(draft.segments[number].origin), number))


def cut_by_ratio(
    draft: Draft, policy: CompressionPolicy, count: Count, calls: Calls, instruction: str, known: Known
) -> None:
    """Shorten each candidate, newest first, so that what it must keep is known when its turn comes.

    Each decision is independent: texts that an earlier pass has shortened, which have receipts, do not affect others.
    """
    may = set(candidates(draft, policy))
    shares = _shares(draft, policy)
    later = Later(draft, calls)
    knife = _Knife(policy, count, instruction, known)
    for number in range(len(draft.segments) - 1, -1, -1):
        text = draft.texts[number]
        needs = later.needs(number, draft.message_index(number), text)
        taken = number in may and knife.cut(draft, number, text, shares[number], needs, all_asked=True)
        later.sent(number, draft.texts[number], is_changed=taken)


def cut_to_target(
    draft: Draft,
    policy: CompressionPolicy,
    count: Count,
    calls: Calls,
    instruction: str,
    tokens_max: int,
    known: Known,
) -> None:
    """Shorten candidates in order until all texts together have at most `tokens_max` tokens, or no more is possible.

    In the first round no text is cut below the policy's ratio. The next round may cut each to a tenth, including texts that
    others refer to: a reference to a gap is better than a refused call. Only in the last round, what is asked about is
    dropped, too.
    """
    needs = needed(draft, calls)
    whole = draft.copy()
    knife = _Knife(policy, count, instruction, known)
    for floor, all_asked in ((policy.target_ratio, True), (TARGET_RATIO_MIN, True), (TARGET_RATIO_MIN, False)):
        for number in candidates(whole, policy):
            over = draft.total_tokens - tokens_max
            if over <= 0:
                return
            wanted = draft.tokens[number] - over
            knife.fit(draft, number, whole, floor, wanted, needs[number], all_asked=all_asked)
        needs = {number: replace(need, blocks=()) for number, need in needs.items()}


@value_class
class _Knife:
    """What all cuts of a chat have in common."""

    policy: CompressionPolicy
    count: Count
    instruction: str
    known: Known

    def cut(self, draft: Draft, number: int, text: str, share: float, needs: Needed, *, all_asked: bool) -> bool:
        """Put the text, shortened to a share of itself, into the draft if that saves tokens."""
        cut = shortened(text, share, self._strategy, self._need(text, needs, all_asked), self.known)
        return cut is not None and draft.take(str(self._strategy), number, cut, self.count)

    def fit(
        self, draft: Draft, number: int, whole: Draft, floor: float, tokens_max: int, needs: Needed, *, all_asked: bool
    ) -> None:
        """Put the text, shortened to a number of tokens or at most to a share of itself, into the draft if that saves tokens."""
        text = whole.texts[number]
        share = max(floor, 1 - _MARGIN * (1 - tokens_max / whole.tokens[number]))
        need = self._need(text, needs, all_asked)
        cut = fitted(text, share, floor, self._strategy, need, tokens_max, self.count, self.known)
        if cut is not None:
            draft.take(str(self._strategy), number, cut, self.count)

    @property
    def _strategy(self) -> Strategy:
        return Strategy.TRUNCATE if self.policy.strategy is Strategy.TRUNCATE else Strategy.EXTRACTIVE

    def _need(self, text: str, needs: Needed, all_asked: bool) -> Need:
        blocks = referenced_lines(text, needs.blocks)
        return Need(needs.ids, needs.listed_ids, blocks, self.policy.min_quality, self.instruction, all_asked)


def _shares(draft: Draft, policy: CompressionPolicy) -> Mapping[int, float]:
    results = [number for number, segment in enumerate(draft.segments) if segment.origin is Origin.TOOL]
    mild_count = _MILD_RESULTS[policy.aggressiveness]
    mild = set(results[-mild_count:]) if mild_count else set()
    return {
        number: (1 + policy.target_ratio) / 2 if number in mild else policy.target_ratio
        for number in range(len(draft.segments))
    }
