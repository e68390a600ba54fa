"""The state of a chat between the stages of compression: each stage proposes texts, and only shorter ones are taken."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from policies.compression.facts import identifiers_of
from policies.compression.markers import references_in
from policies.compression.segments import Origin, Segment
from policies.values import value_class

CountTokens = Callable[[str], int]


@dataclass(slots=True)
class Draft:
    """The current texts of a chat with their tokens, and what each stage has saved. Never grows."""

    segments: Sequence[Segment]
    texts: list[str]
    tokens: list[int]
    saved: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, segments: Sequence[Segment], count: CountTokens) -> "Draft":
        texts = [segment.text for segment in segments]
        return cls(segments, texts, [count(text) for text in texts])

    def copy(self) -> "Draft":
        return Draft(self.segments, list(self.texts), list(self.tokens), dict(self.saved))

    @property
    def total_tokens(self) -> int:
        return sum(self.tokens)

    def replace_if_shorter(self, stage: str, number: int, text: str, count: CountTokens) -> bool:
        """Use a stage's text if the current one may be changed and it has fewer tokens."""
        segment = self.segments[number]
        if (segment.fixed and not segment.holds_data) or text == self.texts[number]:
            return False
        tokens = count(text)
        gain = self.tokens[number] - tokens
        if gain <= 0:
            return False
        self.texts[number], self.tokens[number] = text, tokens
        self.saved[stage] = self.saved.get(stage, 0) + gain
        return True

    def message_index(self, number: int) -> int:
        return int(self.segments[number].place[0])

    def changed(self) -> list[int]:
        return [number for number, segment in enumerate(self.segments) if segment.text != self.texts[number]]


@value_class
class LaterNeeds:
    """What later messages need of a text: ids that it introduces, and blocks that are referred to.

    `ids` are used by calls, models and people; `listed_ids` only occur again in later results, perhaps all of them in the
    next listing. A block is (number of lines, digest of the first line).
    """

    ids: frozenset[str]
    listed_ids: frozenset[str]
    blocks: tuple[tuple[int, str], ...]


class LaterMessages:
    """What the messages after a text use. They are read newest first, as they will be sent: what was cut from them needs nothing.

    Only the first text with an id has to keep it: a listing that is printed ten times introduces its ids once.
    """

    def __init__(self, draft: Draft, call_texts: Sequence[tuple[int, str]]) -> None:
        self._identifiers = [identifiers_of(text) for text in draft.texts]
        self._introduced: dict[str, int] = {}
        for number, identifiers in enumerate(self._identifiers):
            for identifier in identifiers:
                self._introduced.setdefault(identifier, number)
        self._calls = sorted(call_texts)
        self._origins = [segment.origin for segment in draft.segments]
        self._used: set[str] = set()
        self._listed: set[str] = set()
        self._blocks: dict[int, list[tuple[int, str]]] = {}

    def needs(self, number: int, message_index: int, text: str) -> LaterNeeds:
        """Call it with descending numbers, and report each text in between by `add_earlier`."""
        while self._calls and self._calls[-1][0] >= message_index:
            self._used |= identifiers_of(self._calls.pop()[1])
        identifiers = self._identifiers[number] & (self._used | self._listed)
        ids = frozenset(identifier for identifier in identifiers if self._introduced[identifier] == number)
        references = [(lines, mark) for lines, message, mark in references_in(text) if message == message_index + 1]
        return LaterNeeds(ids & self._used, ids - self._used, (*references, *self._blocks.get(message_index + 1, ())))

    def add_earlier(self, number: int, text: str, *, is_changed: bool) -> None:
        identifiers = identifiers_of(text) if is_changed else self._identifiers[number]
        if self._origins[number] is Origin.TOOL:
            self._listed |= identifiers
        else:
            self._used |= identifiers
        for lines, message, mark in references_in(text):
            self._blocks.setdefault(message, []).append((lines, mark))


def later_needs(draft: Draft, call_texts: Sequence[tuple[int, str]]) -> Mapping[int, LaterNeeds]:
    """For each text, what all later ones need of it, as they are now."""
    later = LaterMessages(draft, call_texts)
    needs = {}
    for number in range(len(draft.segments) - 1, -1, -1):
        needs[number] = later.needs(number, draft.message_index(number), draft.texts[number])
        later.add_earlier(number, draft.texts[number], is_changed=False)
    return needs
