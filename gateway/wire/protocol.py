"""What every protocol must be able to tell the pipeline. One file a protocol: parse, clamp, read usage, relay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from gateway.errors import GatewayError
from gateway.upstream.port import ProtocolName
from policies.pricing import NOTHING_HOSTED, Hosted, Usage


@dataclass(frozen=True, slots=True)
class Added:
    """The fields that a deployment's entry added to a request, and what the client's own ones had made of it."""

    fields: Mapping[str, Any]
    choices: int
    output_tokens_max: int | None


@dataclass(slots=True)
class Request:
    """A client's request as the pipeline needs it. `body` is the decoded object; edits are made on copies of its top level."""

    body: dict[str, Any]
    model: str
    stream: bool = False
    choices: int = 1
    output_tokens_max: int | None = None  # the client's own cap, for each choice
    output_tokens_least: int = 1  # the smallest cap with which the provider takes this request at all
    has_output: bool = True  # False: no cap of ours bounds the answer's tokens, or it has none
    wants_usage: bool = False  # the client gets the usage chunk of a stream: it asked, or its answer is made out of one
    has_audio: bool = False  # sounds among what is read or said, which some models bill at many times the price of text
    metadata: Any = None
    added: Added | None = None
    # What a call without a cap is priced by, at most: known from the request before it is sent.
    images: int = 0
    characters: int = 0
    seconds_ms: int = 0
    queries: int = 0
    # What the provider's own tools do: held as the request bounds it, and booked as the answer tells it.
    hosted_least: Hosted = NOTHING_HOSTED  # booked where the answer tells of less
    hosted_max: Hosted = NOTHING_HOSTED
    # Tokens that images and sounds of this call may be billed as, at most: to be reserved, because nothing caps them.
    media_tokens: int = 0

    @property
    def has_units(self) -> bool:
        return bool(self.images or self.characters or self.seconds_ms or self.queries)

    def units(self) -> Usage:
        """What is used beside tokens: to be reserved, and to be booked where the answer does not say."""
        return Usage(images=self.images, characters=self.characters, seconds_ms=self.seconds_ms, queries=self.queries)


class OutputCounter(Protocol):
    def add(self, text: str) -> None: ...

    @property
    def tokens(self) -> int: ...


CountedAs = Literal["chat", "responses", "messages", "completions", "embeddings"]
CounterFactory = Callable[[], OutputCounter]


class Relay(Protocol):
    """One streamed answer on its way through. Feeds on the upstream's bytes, gives the client's."""

    @property
    def usage(self) -> Usage | None:
        """The provider's last word, once it came."""

    @property
    def is_finished(self) -> bool:
        """The answer is whole: the provider said why it ended, for every choice."""

    @property
    def output_tokens(self) -> int:
        """What the answer has come to so far by our own count, over all choices."""

    def feed(self, piece: bytes) -> bytes:
        """Raises `StreamBroken` for what is not of the protocol, and for the provider's own error events."""

    def cut(self) -> bytes:
        """Events that end the answer in good order where the budget ends it: in place of what the last `feed` gave."""

    def close(self, budget: Mapping[str, Any] | None) -> bytes:
        """The last bytes: what is owed of usage, the budget comment, the protocol's own end."""

    def fail(self, error: GatewayError) -> bytes:
        """What a `feed` that raised had let pass before, an error event, and the protocol's own end."""


class WireProtocol(Protocol):
    @property
    def name(self) -> ProtocolName: ...

    @property
    def counted_as(self) -> CountedAs | None:
        """By whose rules the prompt is counted; None: it has no text."""

    @property
    def streams(self) -> bool:
        """The answer may be asked for as a stream. False: it always comes whole."""

    @property
    def is_binary(self) -> bool:
        """A whole answer may be something else than JSON (sound, subtitles): its bytes pass, see `BinaryProtocol`."""

    def parse(self, raw: bytes) -> Request:
        """Raises `BadRequest` that names the field."""

    def forwarded(self, request: Request, output_tokens: int | None, stream: bool) -> dict[str, Any]:
        """The object that goes upstream. `output_tokens` caps each choice; None leaves the client's own cap alone."""

    def usage(self, answer: Mapping[str, Any]) -> Usage | None:
        """What a buffered answer says it used; None when it does not say, or says what cannot be (negative, not a number)."""

    def output_text(self, answer: Mapping[str, Any]) -> str:
        """All text that the model produced, to count where no usage was reported."""

    def relay(self, request: Request, counter: OutputCounter) -> Relay: ...

    def assemble(self, pieces: bytes) -> dict[str, Any]:
        """A buffered answer out of a whole stream, for clients that did not ask for one."""

    def error_body(self, error: GatewayError) -> bytes: ...


class BinaryProtocol(WireProtocol, Protocol):
    """A protocol with `is_binary`: its whole answer is relayed as bytes and asked for its usage here instead."""

    def usage_of_bytes(self, request: Request, answer: bytes) -> Usage | None:
        """What the answer says, or shows, of what it used, in units too; None: book `request.units()` and the prompt."""


# No model reads or writes this many tokens in one call: a figure above it is a provider's error, or an attack.
TOKENS_PLAUSIBLE_MAX: Final = 20_000_000


# What a search may bring along stands in the prompt: so many of them fill any.
HOSTED_PLAUSIBLE_MAX: Final = 10_000
_GOOGLE_TOOLS: Final = {
    "googleSearch": "searches",
    "google_search": "searches",
    "googleMaps": "maps",
    "google_maps": "maps",
}


def hosted_asked(tools: Any, most: Any) -> Hosted:
    """What the provider's own tools may do at most: by a bound of their own, or `most`, or once each where none is told.
    Code is run in one container for all of an answer."""
    asked: dict[str, int] = {}
    for tool in tools if isinstance(tools, list) else ():
        kind = _hosted_kind(tool) if isinstance(tool, dict) else None
        if kind is not None:
            bound = 1 if kind == "sessions" else tool.get("max_uses", most)
            asked[kind] = asked.get(kind, 0) + (hosted_told(bound) or 1)
    return Hosted(**asked) if asked else NOTHING_HOSTED


def _hosted_kind(tool: dict[str, Any]) -> str | None:
    kind = tool.get("type")
    if not isinstance(kind, str):
        return next((_GOOGLE_TOOLS[name] for name in tool if name in _GOOGLE_TOOLS), None)
    if kind.startswith("web_search"):
        return "searches"
    return {"file_search": "file_searches", "code_interpreter": "sessions"}.get(kind)


def hosted_told(value: Any) -> int:
    """A provider's figure of what its tools did, if it can be one."""
    return value if type(value) is int and 0 < value <= HOSTED_PLAUSIBLE_MAX else 0


def term(value: Any) -> str:
    """A tier, a speed or a region as a provider names it. `auto` is a wish, not what came of it."""
    return value if isinstance(value, str) and value != "auto" else ""


def token_count(value: Any) -> int | None:
    """A provider's figure, if it can be one. Absurd figures are treated as missing: our own count is used instead."""
    if type(value) is not int or not 0 <= value <= TOKENS_PLAUSIBLE_MAX:
        return None
    return value
