"""Shortens one text to a share of itself, as far as its quality and the needs of later messages allow."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import replace
from itertools import accumulate

from policies.compression.extractive import extraction_order
from policies.compression.facts import first_mentions
from policies.compression.json_pieces import json_pieces
from policies.compression.json_text import minified
from policies.compression.kinds import Kind, kind_of
from policies.compression.pieces import Pieces, text_pieces
from policies.compression.policy import Strategy
from policies.compression.relevance import asked_about
from policies.compression.scoring import Reading, Yardstick
from policies.compression.truncate import truncation_order
from policies.values import value_class

_GAP_CHARACTERS_MIN = 32  # a shorter gap would not pay for its marker
_ASKED_SHARE_MAX = 0.5  # if more of a text is about the question, the question does not tell its parts apart
_STEPS = (0.0, 1 / 3, 2 / 3)  # steps from the wanted share towards the whole text, if quality requires more
# The search for a share that fits begins with a guess. The next share follows from the resulting size or, once a share was
# too poor, by bisection; the last try is the minimum.
_FITTING_TRIES = 6
_FITTING_SHARE = 0.01  # bisection stops at this distance
_FITTING_STEP = 0.0025  # the smallest decrease of the share, doubled with each try


@value_class
class Need:
    """What must survive a cut: ids that later messages use, lines that later references point to, what is asked about, and quality.

    There may be so many `listed_ids` that keeping their places would keep everything. As many places are kept as fit into
    half of the kept text; the other ids are named in the marker of the gap. What the instruction asks about is dropped last,
    and with `all_asked` not at all, unless it is most of the text.
    """

    live_ids: frozenset[str]
    listed_ids: frozenset[str]
    referenced_lines: frozenset[int]
    min_quality: float
    instruction: str
    all_asked: bool = False


def shortened(text: str, share: float, strategy: Strategy, need: Need, known: Known | None = None) -> str | None:
    """The text cut to about `share` (0–1) of its characters, to more if quality requires it; None if that is not possible.

    `strategy` is truncate or extractive. The result has a receipt. The caller has to check that it has fewer tokens.
    """
    cuts = (known or Known()).cuts(text, strategy, need)
    if cuts is None:
        return None
    for step in _STEPS:
        cut = cuts.at(share + (1 - share) * step)
        if cut is not None and cuts.is_good(cut):
            return cut
    return None


def fitted(
    text: str,
    share: float,
    share_min: float,
    strategy: Strategy,
    need: Need,
    tokens_max: int,
    count: Callable[[str], int],
    known: Known | None = None,
) -> str | None:
    """The text cut to at most `tokens_max` tokens, or as close to it as quality and `share_min` allow. The first try is at
    about `share` (0–1) of its characters. None: nothing can be cut.

    The tokens of a share are only known after the cut, because characters and tokens are not proportional and pieces are kept
    or dropped whole. So the share is searched for, between one that is too poor and one that is too long.
    """
    cuts = (known or Known()).cuts(text, strategy, need)
    if cuts is None:
        return None
    best: tuple[int, str] | None = None
    poor, long, is_poor = share_min, 1.0, False
    for number in range(_FITTING_TRIES):
        cut = cuts.at(share)
        step = _FITTING_STEP * 2**number
        if cut is not None and not cuts.is_good(cut):
            poor, is_poor = share, True
        else:
            long = share
            if cut is not None:
                tokens = count(cut)
                best = min(best or (tokens, cut), (tokens, cut))
                if tokens <= tokens_max:
                    break
                step = max(step, share * (1 - tokens_max / tokens))
        if is_poor:
            share = (poor + long) / 2
            if long - share < _FITTING_SHARE:
                break
        elif long == share_min:
            break
        else:
            share = max(share_min, long - step) if number < _FITTING_TRIES - 2 else share_min
    return best[1] if best is not None else None


@value_class
class _Cuts:
    """One text, split and measured once, to be cut at several shares."""

    text: str
    pieces: Pieces
    order: Sequence[float]
    pinned: Set[int]
    listed: Mapping[str, int]
    asked: Set[int]
    yardstick: Yardstick
    quality_min: float

    @classmethod
    def of(cls, text: str, strategy: Strategy, need: Need, reading: Reading) -> _Cuts | None:
        pieces = _pieces(text, need)
        if pieces is None or len(pieces.units) < 2:
            return None
        return cls(
            text,
            pieces,
            _order(pieces, strategy, need.instruction),
            pieces.always | _pinned(pieces.units, need),
            _places(pieces.units, need.listed_ids),
            asked_about(pieces.contexts, need.instruction),
            Yardstick.of(text, need.instruction, reading),
            need.min_quality,
        )

    def with_all_asked(self) -> _Cuts:
        """Keep all that is asked about, unless it is most of the text."""
        pieces, asked = self.pieces, self.asked
        if _size(pieces, asked) > _ASKED_SHARE_MAX * _size(pieces, range(len(pieces.units))):
            return self
        return replace(self, pinned=self.pinned | asked)

    def at(self, share: float) -> str | None:
        """None: it would leave nothing out."""
        cut = _cut(self.pieces, self.order, self.pinned, self.listed, self.asked, share)
        return cut if cut is not None and len(cut) < len(self.text) else None

    def is_good(self, cut: str) -> bool:
        return self.yardstick.kept(cut) >= self.quality_min


class Known:
    """The cache for the texts of one chat, so that further cuts do not split and measure a text again."""

    def __init__(self) -> None:
        self.reading = Reading()
        self._cuts: dict[tuple[str, Strategy, Need], _Cuts | None] = {}

    def cuts(self, text: str, strategy: Strategy, need: Need) -> _Cuts | None:
        """None: nothing can be cut."""
        key = text, strategy, replace(need, all_asked=False)
        if key not in self._cuts:
            self._cuts[key] = _Cuts.of(text, strategy, need, self.reading)
        found = self._cuts[key]
        return found.with_all_asked() if found is not None and need.all_asked else found


def _pieces(text: str, need: Need) -> Pieces | None:
    kind = kind_of(text)
    if kind is not Kind.JSON:
        return text_pieces(text, kind)
    if need.referenced_lines:  # the reference is to its only line
        return None
    try:
        return json_pieces(minified(text))
    except RecursionError:  # nested as deep as the interpreter can read
        return None


def _order(pieces: Pieces, strategy: Strategy, instruction: str) -> list[float]:
    if strategy is Strategy.TRUNCATE:
        return truncation_order(pieces.units)
    return extraction_order(pieces.units, pieces.contexts, instruction)


def _pinned(units: Sequence[str], need: Need) -> set[int]:
    """The first unit with each live id, and every unit with a referenced line."""
    pinned: set[int] = set()
    pinned.update(_places(units, need.live_ids).values())
    line = 0
    for number, unit in enumerate(units if need.referenced_lines else ()):
        lines = unit.count("\n")
        if not need.referenced_lines.isdisjoint(range(line, line + lines + 1)):
            pinned.add(number)
        line += lines
    return pinned


def _places(units: Sequence[str], ids: Set[str]) -> dict[str, int]:
    """For each id, the first unit that contains it."""
    if not ids:
        return {}
    starts = list(accumulate((len(unit) + 1 for unit in units), initial=0))
    mentions = first_mentions("\n".join(units), ids)
    return {identifier: bisect_right(starts, place) - 1 for identifier, place in mentions.items()}


def _size(pieces: Pieces, numbers: Iterable[int]) -> int:
    return sum(len(pieces.units[number]) for number in numbers)


def _cut(
    pieces: Pieces,
    order: Sequence[float],
    pinned: Set[int],
    listed: Mapping[str, int],
    asked: Set[int],
    share: float,
) -> str | None:
    sizes = [len(unit) for unit in pieces.units]
    allowed = share * sum(sizes) - sum(sizes[number] for number in pinned)
    kept = set(pinned)
    reserved = allowed / 2
    for number in dict.fromkeys(listed.values()):
        if number not in kept and sizes[number] <= reserved:
            kept.add(number)
            reserved -= sizes[number]
            allowed -= sizes[number]
    for number in sorted(range(len(sizes)), key=lambda number: (number not in asked, -order[number])):
        # A unit that is asked about is kept despite its length while there is room for anything.
        if number not in kept and (sizes[number] <= allowed or (number in asked and allowed > 0)):
            kept.add(number)
            allowed -= sizes[number]
    kept |= _too_small_to_drop(sizes, kept)
    named = [identifier for identifier, number in listed.items() if number not in kept]
    return pieces.render(kept, f" (naming {' '.join(named)})" if named else "") if len(kept) < len(sizes) else None


def _too_small_to_drop(sizes: Sequence[int], kept: Set[int]) -> set[int]:
    """Units in gaps that are shorter than the marker that would replace them."""
    found: set[int] = set()
    gap: list[int] = []
    for number in range(len(sizes) + 1):
        if number < len(sizes) and number not in kept:
            gap.append(number)
            continue
        if sum(sizes[unit] for unit in gap) < _GAP_CHARACTERS_MIN:
            found.update(gap)
        gap = []
    return found
