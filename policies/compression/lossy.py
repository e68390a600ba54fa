"""Which texts a lossy strategy shortens, by how much, and in which order."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from policies.compression.cutting import Need, shortened
from policies.compression.duplicates import referenced_lines
from policies.compression.markers import is_receipted
from policies.compression.policy import TARGET_RATIO_MIN, Aggressiveness, CompressionPolicy, Strategy
from policies.compression.segments import Origin
from policies.compression.stages import Count, Draft, Later, Needed, needed
from policies.values import value_class

# Below these sizes a cut saves little and costs sense. What people wrote are orders; only pasted documents are that long.
_TOKENS_MIN = MappingProxyType({Origin.TOOL: 100, Origin.ASSISTANT: 200, Origin.USER: 500})
_ORDER = (Origin.TOOL, Origin.ASSISTANT, Origin.USER)
# The newest results are what the next step works on: so many of them are cut half as deep.
_MILD_RESULTS = MappingProxyType({Aggressiveness.LOW: 3, Aggressiveness.MEDIUM: 1, Aggressiveness.HIGH: 0})
_MARGIN = 1.05  # characters and tokens are not quite proportional
Calls = Sequence[tuple[int, str]]


def candidates(draft: Draft, policy: CompressionPolicy) -> list[int]:
    """The texts that may be shortened, in the order in which they are: tool results first, oldest first."""
    may = [
        number
        for number, segment in enumerate(draft.segments)
        if not segment.fixed
        and draft.tokens[number] >= _TOKENS_MIN.get(segment.origin, draft.tokens[number] + 1)
        and not (segment.exact and policy.aggressiveness is Aggressiveness.LOW)
        and not is_receipted(draft.texts[number])
    ]
    return sorted(may, key=lambda number: (_ORDER.index(draft.segments[number].origin), number))


def cut_by_ratio(draft: Draft, policy: CompressionPolicy, count: Count, calls: Calls, instruction: str) -> None:
    """Shorten every candidate by itself, newest first, so that what it must keep is known when its turn comes.

    Each text is decided on alone: shortened texts of an earlier pass, which carry receipts, change nothing for others.
    """
    may = set(candidates(draft, policy))
    shares = _shares(draft, policy)
    later = Later(draft, calls)
    knife = _Knife(policy, count, instruction)
    for number in range(len(draft.segments) - 1, -1, -1):
        text = draft.texts[number]
        needs = later.needs(number, draft.message_index(number), text)
        taken = number in may and knife.cut(draft, number, text, shares[number], needs, all_asked=True)
        later.sent(number, draft.texts[number], is_changed=taken)


def cut_to_target(
    draft: Draft, policy: CompressionPolicy, count: Count, calls: Calls, instruction: str, tokens_max: int
) -> None:
    """Shorten candidates in order until all texts together have at most `tokens_max` tokens, or none can give more.

    First none gives more than the policy's ratio; then the order starts again with a tenth of each to keep, also of texts
    that others refer to: a reference to what is marked as left out is better than a refused call. What is asked about
    goes in a last round, when there is nothing else.
    """
    needs = needed(draft, calls)
    whole = draft.copy()
    knife = _Knife(policy, count, instruction)
    for floor, all_asked in ((policy.target_ratio, True), (TARGET_RATIO_MIN, True), (TARGET_RATIO_MIN, False)):
        for number in candidates(whole, policy):
            over = draft.total_tokens - tokens_max
            if over <= 0:
                return
            give = whole.tokens[number] - draft.tokens[number] + over
            share = max(floor, 1 - _MARGIN * give / whole.tokens[number])
            knife.cut(draft, number, whole.texts[number], share, needs[number], all_asked=all_asked)
        needs = {number: replace(need, blocks=()) for number, need in needs.items()}


@value_class
class _Knife:
    """What every cut of a chat has in common."""

    policy: CompressionPolicy
    count: Count
    instruction: str

    def cut(self, draft: Draft, number: int, text: str, share: float, needs: Needed, *, all_asked: bool) -> bool:
        """Put the text, shortened to a share of itself, in its place in the draft if that saves tokens."""
        blocks = referenced_lines(text, needs.blocks)
        need = Need(needs.ids, needs.listed_ids, blocks, self.policy.min_quality, self.instruction, all_asked)
        strategy = Strategy.TRUNCATE if self.policy.strategy is Strategy.TRUNCATE else Strategy.EXTRACTIVE
        cut = shortened(text, share, strategy, need)
        return cut is not None and draft.take(str(strategy), number, cut, self.count)


def _shares(draft: Draft, policy: CompressionPolicy) -> Mapping[int, float]:
    results = [number for number, segment in enumerate(draft.segments) if segment.origin is Origin.TOOL]
    mild_count = _MILD_RESULTS[policy.aggressiveness]
    mild = set(results[-mild_count:]) if mild_count else set()
    return {
        number: (1 + policy.target_ratio) / 2 if number in mild else policy.target_ratio
        for number in range(len(draft.segments))
    }
