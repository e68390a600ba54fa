"""A chat on its way through the stages of compression: every stage proposes texts, and only shorter ones are taken."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from policies.compression.facts import identifiers_of
from policies.compression.segments import Segment

Count = Callable[[str], int]


@dataclass(slots=True)
class Draft:
    """The texts of a chat as they stand, with their tokens, and what each stage saved. Never grows."""

    segments: Sequence[Segment]
    texts: list[str]
    tokens: list[int]
    saved: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, segments: Sequence[Segment], count: Count) -> "Draft":
        texts = [segment.text for segment in segments]
        return cls(segments, texts, [count(text) for text in texts])

    def copy(self) -> "Draft":
        return Draft(self.segments, list(self.texts), list(self.tokens), dict(self.saved))

    @property
    def total_tokens(self) -> int:
        return sum(self.tokens)

    def take(self, stage: str, number: int, text: str, count: Count) -> bool:
        """Put a stage's text in place, if it may be changed and if that costs fewer tokens."""
        if self.segments[number].fixed or text == self.texts[number]:
            return False
        tokens = count(text)
        gain = self.tokens[number] - tokens
        if gain <= 0:
            return False
        self.texts[number], self.tokens[number] = text, tokens
        self.saved[stage] = self.saved.get(stage, 0) + gain
        return True

    def changed(self) -> list[int]:
        return [number for number, segment in enumerate(self.segments) if segment.text != self.texts[number]]


class LiveIds:
    """Which ids a text introduces that later messages still use.

    Only the first text that holds an id has to keep it: a listing that is printed ten times introduces its ids once.
    Ids are read newest text first, from texts as they will be sent: what was left out of a later one needs nothing.
    """

    def __init__(self, draft: Draft, call_texts: Sequence[tuple[int, str]]) -> None:
        self._held = [identifiers_of(text) for text in draft.texts]
        self._introduced: dict[str, int] = {}
        for number, held in enumerate(self._held):
            for identifier in held:
                self._introduced.setdefault(identifier, number)
        self._calls = sorted(call_texts)
        self._later: set[str] = set()

    def of(self, number: int, message_index: int) -> frozenset[str]:
        """Ask for descending numbers only, and tell by `sent` what became of each text in between."""
        while self._calls and self._calls[-1][0] >= message_index:
            self._later |= identifiers_of(self._calls.pop()[1])
        return frozenset(
            identifier for identifier in self._held[number] & self._later if self._introduced[identifier] == number
        )

    def sent(self, number: int, text: str, *, is_changed: bool) -> None:
        self._later |= identifiers_of(text) if is_changed else self._held[number]


def live_ids(draft: Draft, call_texts: Sequence[tuple[int, str]]) -> Mapping[int, frozenset[str]]:
    """For every text, the ids it introduces that any later one, as it stands, uses."""
    ids = LiveIds(draft, call_texts)
    found = {}
    for number in range(len(draft.segments) - 1, -1, -1):
        found[number] = ids.of(number, int(draft.segments[number].place[0]))
        ids.sent(number, "", is_changed=False)
    return found
