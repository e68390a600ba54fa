"""The interface between protocols and the pipeline. Each protocol has its own file: parse, clamp, read usage, relay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from gateway.errors import GatewayError
from gateway.upstream.port import ProtocolName
from policies.pricing import NO_HOSTED_TOOLS, HostedTools, Usage


@dataclass(frozen=True, slots=True)
class AddedFields:
    """The fields that a deployment's entry added to a request, and the values of choices and cap before that."""

    fields: Mapping[str, Any]
    choices: int
    output_tokens_max: int | None


@dataclass(slots=True)
class Request:
    """A client's request as the pipeline sees it. `body` is the decoded object; edits are made on copies of its top level."""

    body: dict[str, Any]
    model: str
    stream: bool = False
    choices: int = 1
    output_tokens_max: int | None = None  # the client's own cap, for each choice
    is_cap_assumed: bool = False  # the cap is the provider's usual default: a budget that counts on it has to send it
    output_tokens_min_useful: int = 1  # the smallest cap with which the provider accepts this request
    has_output: bool = True  # False: the answer has no tokens, or no cap can limit them
    wants_usage: bool = False  # the client gets the usage: it asked, or its answer is assembled from a stream
    has_audio: bool = False  # audio in the prompt or the answer, which some models bill at many times the price of text
    metadata: Any = None
    added: AddedFields | None = None
    # Upper bounds of what calls may be priced by instead of tokens, known before the request is sent.
    images: int = 0
    characters: int = 0
    audio_ms: int = 0
    queries: int = 0
    # The use of the provider's own tools: reserved by the request's bounds, booked as the answer reports it.
    hosted_min: HostedTools = NO_HOSTED_TOOLS  # booked even if the answer reports less
    hosted_max: HostedTools = NO_HOSTED_TOOLS
    # Upper bound of the tokens billed for this call's images and audio: reserved up front, because nothing caps them.
    media_tokens: int = 0

    @property
    def has_units(self) -> bool:
        return bool(self.images or self.characters or self.audio_ms or self.queries)

    def units(self) -> Usage:
        """The usage other than tokens: what to reserve, and what to book if the answer reports nothing."""
        return Usage(images=self.images, characters=self.characters, audio_ms=self.audio_ms, queries=self.queries)


class OutputCounter(Protocol):
    def add(self, text: str) -> None: ...

    @property
    def tokens(self) -> int: ...


CountedAs = Literal["chat", "responses", "messages", "completions", "embeddings"]
CounterFactory = Callable[[], OutputCounter]


class Relay(Protocol):
    """Relays one streamed answer: takes the upstream's bytes, and returns the bytes for the client."""

    @property
    def usage(self) -> Usage | None:
        """The latest usage that the provider has reported, if any."""

    @property
    def prompt_usage(self) -> Usage | None:
        """What the provider reported for the prompt before the answer began, if it does. Its output is meaningless."""

    @property
    def usage_lags(self) -> bool:
        """Whether the answer went on after that usage was reported, so that its output may be too low."""

    @property
    def is_finished(self) -> bool:
        """Whether the answer is complete: the provider has sent a finish reason for every choice."""

    @property
    def output_tokens(self) -> int:
        """Our own count of the answer so far, over all choices."""

    def feed(self, piece: bytes) -> bytes:
        """Raises `StreamBroken` for data that violates the protocol, and for the provider's own error events."""

    def cut(self) -> bytes:
        """Events that end the answer properly when the budget ends it. They replace what the last `feed` returned."""

    def close(self, budget: Mapping[str, Any] | None) -> bytes:
        """The last bytes: the usage if wanted, the budget comment, and the protocol's end."""

    def fail(self, error: GatewayError, budget: Mapping[str, Any] | None = None) -> bytes:
        """Whatever the `feed` that raised had already let through, then the budget comment, an error event and the protocol's end."""


class WireProtocol(Protocol):
    @property
    def name(self) -> ProtocolName: ...

    @property
    def counted_as(self) -> CountedAs | None:
        """The protocol by whose rules the prompt is counted; None: it has no text."""

    @property
    def answer_field(self) -> str:
        """The field of a whole JSON answer that holds what the model produced; empty if none does."""

    @property
    def streams(self) -> bool:
        """Whether the answer can be streamed. False: it always comes whole."""

    @property
    def is_binary(self) -> bool:
        """Whether a whole answer may be something other than JSON (audio, subtitles); see `BinaryProtocol`."""

    def parse(self, raw: bytes) -> Request:
        """Raises a `BadRequest` that names the field."""

    def upstream_body(self, request: Request, output_tokens: int | None, stream: bool) -> dict[str, Any]:
        """The object to send upstream. `output_tokens` caps each choice; None leaves the client's own cap alone."""

    def usage(self, answer: Mapping[str, Any]) -> Usage | None:
        """The usage that a buffered answer reports; None if it is missing or impossible (negative, not a number)."""

    def output_text(self, answer: Mapping[str, Any]) -> str:
        """All text that the model produced, to be counted if no usage was reported."""

    def relay(self, request: Request, counter: OutputCounter) -> Relay: ...

    def assemble(self, pieces: bytes) -> dict[str, Any]:
        """A buffered answer made from a whole stream, for clients that did not ask for a stream."""

    def error_body(self, error: GatewayError) -> bytes: ...


class BinaryProtocol(WireProtocol, Protocol):
    """A protocol with `is_binary`: the pipeline relays its whole answer as bytes, and calls this instead of `usage`."""

    def usage_of_bytes(self, request: Request, answer: bytes) -> Usage | None:
        """The usage that the answer reports or reveals, including units; None: book `request.units()` and the prompt."""


# No model reads or writes this many tokens in one call: a larger figure is a provider's error, or an attack.
TOKENS_PLAUSIBLE_MAX: Final = 20_000_000


# Search results become part of the prompt, and this many would fill any context window.
HOSTED_PLAUSIBLE_MAX: Final = 10_000
_GOOGLE_TOOLS: Final = {
    "googleSearch": "searches",
    "google_search": "searches",
    "googleMaps": "maps",
    "google_maps": "maps",
}


def hosted_tools_bound(tools: Any, default_bound: Any) -> HostedTools:
    """How often the provider's own tools may be used at most: by each tool's own bound, else `default_bound`, else once.
    An answer runs all of its code in one container."""
    uses: dict[str, int] = {}
    for tool in tools if isinstance(tools, list) else ():
        kind = _hosted_kind(tool) if isinstance(tool, dict) else None
        if kind is not None:
            bound = 1 if kind == "sessions" else tool.get("max_uses", default_bound)
            uses[kind] = uses.get(kind, 0) + (plausible_tool_uses(bound) or 1)
    return HostedTools(**uses) if uses else NO_HOSTED_TOOLS


def _hosted_kind(tool: dict[str, Any]) -> str | None:
    kind = tool.get("type")
    if not isinstance(kind, str):
        return next((_GOOGLE_TOOLS[name] for name in tool if name in _GOOGLE_TOOLS), None)
    if kind.startswith("web_search"):
        return "searches"
    return {"file_search": "file_searches", "code_interpreter": "sessions"}.get(kind)


def plausible_tool_uses(value: Any) -> int:
    """A provider's figure for the use of its tools; 0 if it is implausible."""
    return value if type(value) is int and 0 < value <= HOSTED_PLAUSIBLE_MAX else 0


def joined_texts(parts: Any, text_of: Callable[[dict[str, Any]], str]) -> str:
    """The texts of a whole answer's choices, blocks or items, a line each."""
    return "\n".join(text_of(part) for part in parts if isinstance(part, dict)) if isinstance(parts, list) else ""


def billing_term(value: Any) -> str:
    """A tier, speed or region as a provider reports it. `auto` does not count, since it is a request, not a result."""
    return value if isinstance(value, str) and value != "auto" else ""


def token_count(value: Any) -> int | None:
    """A provider's token figure. Implausible figures are treated as missing, so that our own count is used instead."""
    if type(value) is not int or not 0 <= value <= TOKENS_PLAUSIBLE_MAX:
        return None
    return value
