"""Shortens one text to a share of itself, as far as its quality and the needs of later messages allow."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import replace
from itertools import accumulate

from policies.compression.extractive import extraction_priorities
from policies.compression.facts import first_mentions
from policies.compression.json_pieces import json_pieces
from policies.compression.json_text import minified
from policies.compression.pieces import Pieces, text_pieces
from policies.compression.policy import Strategy
from policies.compression.relevance import relevant_units
from policies.compression.scoring import ContentReader, QualityScorer
from policies.compression.text_kind import TextKind, kind_of
from policies.compression.truncate import truncation_priorities
from policies.values import value_class

_GAP_CHARACTERS_MIN = 32  # a shorter gap would not pay for its marker
_RELEVANT_SHARE_MAX = 0.5  # if more of a text is about the question, the question does not tell its parts apart
_QUALITY_STEPS = (0.0, 1 / 3, 2 / 3)  # steps from the wanted share towards the whole text, if quality requires more
# The search for a share that fits begins with a guess. The next share follows from the resulting size or, once a share was
# too poor, by bisection; the last try is the minimum.
_SEARCH_TRIES = 6
_SEARCH_SHARE_MIN = 0.01  # bisection stops at this distance
_SEARCH_STEP_MIN = 0.0025  # the smallest decrease of the share, doubled with each try


@value_class
class CutConstraints:
    """What must survive a cut: ids that later messages use, lines that later references point to, what is asked about, and quality.

    There may be so many `listed_ids` that keeping their places would keep everything. As many places are kept as fit into
    half of the kept text; the other ids are named in the marker of the gap. What the instruction asks about is dropped last,
    and with `keep_relevant` not at all, unless it is most of the text.
    """

    live_ids: frozenset[str]
    listed_ids: frozenset[str]
    referenced_lines: frozenset[int]
    min_quality: float
    instruction: str
    keep_relevant: bool = False


def shorten_to_share(
    text: str, share: float, strategy: Strategy, constraints: CutConstraints, cache: CutCache | None = None
) -> str | None:
    """The text cut to about `share` (0–1) of its characters, to more if quality requires it; None if that is not possible.

    `strategy` is truncate or extractive. The result has a receipt. The caller has to check that it has fewer tokens.
    """
    cutter = (cache or CutCache()).cutter(text, strategy, constraints)
    if cutter is None:
        return None
    for step in _QUALITY_STEPS:
        cut = cutter.cut_to(share + (1 - share) * step)
        if cut is not None and cutter.is_good_enough(cut):
            return cut
    return None


def shorten_to_tokens(
    text: str,
    share: float,
    share_min: float,
    strategy: Strategy,
    constraints: CutConstraints,
    tokens_max: int,
    count: Callable[[str], int],
    cache: CutCache | None = None,
) -> str | None:
    """The text cut to at most `tokens_max` tokens, or as close to it as quality and `share_min` allow. The first try is at
    about `share` (0–1) of its characters. None: nothing can be cut.

    The tokens of a share are only known after the cut, because characters and tokens are not proportional and pieces are kept
    or dropped whole. So the share is searched for, between one that is too poor and one that is too long.
    """
    cutter = (cache or CutCache()).cutter(text, strategy, constraints)
    if cutter is None:
        return None
    best: tuple[int, str] | None = None
    low_share, high_share, is_quality_too_low = share_min, 1.0, False
    for number in range(_SEARCH_TRIES):
        cut = cutter.cut_to(share)
        step = _SEARCH_STEP_MIN * 2**number
        if cut is not None and not cutter.is_good_enough(cut):
            low_share, is_quality_too_low = share, True
        else:
            high_share = share
            if cut is not None:
                tokens = count(cut)
                best = min(best or (tokens, cut), (tokens, cut))
                if tokens <= tokens_max:
                    break
                step = max(step, share * (1 - tokens_max / tokens))
        if is_quality_too_low:
            share = (low_share + high_share) / 2
            if high_share - share < _SEARCH_SHARE_MIN:
                break
        elif high_share == share_min:
            break
        else:
            share = max(share_min, high_share - step) if number < _SEARCH_TRIES - 2 else share_min
    return best[1] if best is not None else None


@value_class
class _TextCutter:
    """One text, split and measured once, to be cut at several shares."""

    text: str
    pieces: Pieces
    priorities: Sequence[float]
    pinned: Set[int]
    listed: Mapping[str, int]
    relevant: Set[int]
    scorer: QualityScorer
    quality_min: float

    @classmethod
    def of(
        cls, text: str, strategy: Strategy, constraints: CutConstraints, reader: ContentReader
    ) -> _TextCutter | None:
        pieces = _pieces(text, constraints)
        if pieces is None or len(pieces.units) < 2:
            return None
        return cls(
            text,
            pieces,
            _priorities(pieces, strategy, constraints.instruction),
            pieces.required | _pinned(pieces.units, constraints),
            _first_units_with(pieces.units, constraints.listed_ids),
            relevant_units(pieces.contexts, constraints.instruction),
            QualityScorer.of(text, constraints.instruction, reader),
            constraints.min_quality,
        )

    def keeping_relevant(self) -> _TextCutter:
        """Keep all that is asked about, unless it is most of the text."""
        pieces, relevant = self.pieces, self.relevant
        if _size(pieces, relevant) > _RELEVANT_SHARE_MAX * _size(pieces, range(len(pieces.units))):
            return self
        return replace(self, pinned=self.pinned | relevant)

    def cut_to(self, share: float) -> str | None:
        """None: it would leave nothing out."""
        cut = _render_cut(self.pieces, self.priorities, self.pinned, self.listed, self.relevant, share)
        return cut if cut is not None and len(cut) < len(self.text) else None

    def is_good_enough(self, cut: str) -> bool:
        return self.scorer.score_cut(cut) >= self.quality_min


class CutCache:
    """The cache for the texts of one chat, so that further cuts do not split and measure a text again."""

    def __init__(self) -> None:
        self.reader = ContentReader()
        self._cutters: dict[tuple[str, Strategy, CutConstraints], _TextCutter | None] = {}

    def cutter(self, text: str, strategy: Strategy, constraints: CutConstraints) -> _TextCutter | None:
        """None: nothing can be cut."""
        key = text, strategy, replace(constraints, keep_relevant=False)
        if key not in self._cutters:
            self._cutters[key] = _TextCutter.of(text, strategy, constraints, self.reader)
        cutter = self._cutters[key]
        return cutter.keeping_relevant() if cutter is not None and constraints.keep_relevant else cutter


def _pieces(text: str, constraints: CutConstraints) -> Pieces | None:
    kind = kind_of(text)
    if kind is not TextKind.JSON:
        return text_pieces(text, kind)
    if constraints.referenced_lines:  # the reference is to its only line
        return None
    try:
        return json_pieces(minified(text))
    except RecursionError:  # nested as deep as the interpreter can read
        return None


def _priorities(pieces: Pieces, strategy: Strategy, instruction: str) -> list[float]:
    if strategy is Strategy.TRUNCATE:
        return truncation_priorities(pieces.units)
    return extraction_priorities(pieces.units, pieces.contexts, instruction)


def _pinned(units: Sequence[str], constraints: CutConstraints) -> set[int]:
    """The first unit with each live id, and every unit with a referenced line."""
    pinned: set[int] = set()
    pinned.update(_first_units_with(units, constraints.live_ids).values())
    line = 0
    for number, unit in enumerate(units if constraints.referenced_lines else ()):
        lines = unit.count("\n")
        if not constraints.referenced_lines.isdisjoint(range(line, line + lines + 1)):
            pinned.add(number)
        line += lines
    return pinned


def _first_units_with(units: Sequence[str], ids: Set[str]) -> dict[str, int]:
    """For each id, the first unit that contains it."""
    if not ids:
        return {}
    starts = list(accumulate((len(unit) + 1 for unit in units), initial=0))
    mentions = first_mentions("\n".join(units), ids)
    return {identifier: bisect_right(starts, position) - 1 for identifier, position in mentions.items()}


def _size(pieces: Pieces, numbers: Iterable[int]) -> int:
    return sum(len(pieces.units[number]) for number in numbers)


def _render_cut(
    pieces: Pieces,
    priorities: Sequence[float],
    pinned: Set[int],
    unit_by_identifier: Mapping[str, int],
    relevant: Set[int],
    share: float,
) -> str | None:
    sizes = [len(unit) for unit in pieces.units]
    allowed = share * sum(sizes) - sum(sizes[number] for number in pinned)
    kept_units = set(pinned)
    reserved = allowed / 2
    for number in dict.fromkeys(unit_by_identifier.values()):
        if number not in kept_units and sizes[number] <= reserved:
            kept_units.add(number)
            reserved -= sizes[number]
            allowed -= sizes[number]
    for number in sorted(range(len(sizes)), key=lambda number: (number not in relevant, -priorities[number])):
        # A unit that is asked about is kept despite its length while there is room for anything.
        if number not in kept_units and (sizes[number] <= allowed or (number in relevant and allowed > 0)):
            kept_units.add(number)
            allowed -= sizes[number]
    kept_units |= _too_small_to_drop(sizes, kept_units)
    named_identifiers = [identifier for identifier, number in unit_by_identifier.items() if number not in kept_units]
    return (
        pieces.render(kept_units, f" (naming {' '.join(named_identifiers)})" if named_identifiers else "")
        if len(kept_units) < len(sizes)
        else None
    )


def _too_small_to_drop(sizes: Sequence[int], kept_units: Set[int]) -> set[int]:
    """Units in gaps that are shorter than the marker that would replace them."""
    too_small: set[int] = set()
    gap: list[int] = []
    for number in range(len(sizes) + 1):
        if number < len(sizes) and number not in kept_units:
            gap.append(number)
            continue
        if sum(sizes[unit] for unit in gap) < _GAP_CHARACTERS_MIN:
            too_small.update(gap)
        gap = []
    return too_small
