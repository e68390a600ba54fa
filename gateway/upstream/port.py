"""The interface of forwarding, the same for every lane (direct, litellm, mock): what it takes and what it returns."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

ProtocolName = Literal[
    "chat",
    "completions",
    "responses",
    "messages",
    "embeddings",
    "moderations",
    "rerank",
    "images",
    "speech",
    "transcriptions",
]
STREAMED: Final = frozenset[ProtocolName]({"chat", "completions", "responses", "messages"})
Lane = Literal["direct", "litellm", "mock"]
# Why Farebox itself calls a model.
Purpose = Literal["classify", "condense"]


@dataclass(frozen=True, slots=True)
class Deployment:
    """One `model_list` entry: a provider's model that serves a public name."""

    id: str  # stable within a configuration: the public name and its position among its siblings
    name: str  # what clients ask for
    provider: str  # LiteLLM's provider name: openai, anthropic, hosted_vllm, …
    model: str  # the provider's name for the model
    lane: Literal["auto", "direct", "litellm"]
    params: Mapping[str, Any]  # litellm_params with the environment resolved; api_base, api_key, mock_response, …
    info: Mapping[str, Any]  # model_info
    weight: float = 1

    @property
    def is_mock(self) -> bool:
        return "mock_response" in self.params


@dataclass(frozen=True, slots=True)
class Timeouts:
    connect_ms: int = 5_000
    first_byte_ms: int = 300_000
    idle_ms: int = 60_000
    total_ms: int = 600_000


class SendObserver(Protocol):
    """Notified by lanes that know when a request is sent. If a lane says nothing, the request is assumed to have been sent."""

    def on_waiting(self) -> None:
        """The request waits for a connection, and no byte of it has been sent."""

    def before_send(self) -> Awaitable[None] | None:
        """The request is about to be sent. Await the result first; if that raises, do not send the request."""


@dataclass(slots=True)
class UpstreamCall:
    """An admitted request. `body` is the client's own object with our edits, and must not be changed any more."""

    protocol: ProtocolName
    body: Mapping[str, Any]
    stream: bool  # of the upstream answer, whatever the client asked for
    # The few client headers that go upstream (anthropic-beta, …).
    headers: Mapping[str, str] = field(default_factory=dict)
    # Passed on only if the deployment has no key of its own and none is configured here.
    client_credential: str | None = None
    request_id: str = ""
    timeouts: Timeouts = Timeouts()
    send_observer: SendObserver | None = None
    purpose: Purpose | None = None  # None: a client's own call


@dataclass(slots=True)
class UpstreamAnswer:
    """`body` for a buffered answer, `pieces` for a stream: raw bytes of server-sent events in the client's protocol.

    An answer with a status of 400 or more always has a `body`: the provider's error, in the client's protocol. Only streams
    have to be closed.
    """

    status: int
    headers: Mapping[str, str]
    deployment: Deployment
    lane: Lane
    body: bytes = b""
    pieces: AsyncIterator[bytes] | None = None
    close: Callable[[], Awaitable[None]] | None = None  # idempotent; closes the provider's connection at once
    # Removes our credentials from an error that the provider reports in `pieces`; None: not needed.
    clean: Callable[[str], str] | None = None


class UpstreamError(Exception):
    """The provider could not be reached, or its answer broke off. `bytes_received`: part of an answer had arrived.

    UpstreamError
    ├── UpstreamTimeout       it did not answer in time (504)
    ├── UpstreamUnreachable   no connection could be made: DNS, refused, TLS (502)
    └── UpstreamBroken        the connection or the answer broke off, or the answer is invalid (502)
    """

    status: int = 502
    code: str = "upstream_error"

    def __init__(self, message: str, *, bytes_received: bool = False) -> None:
        super().__init__(message)
        self.bytes_received = bytes_received


class UpstreamTimeout(UpstreamError):
    status = 504
    code = "upstream_timeout"


class UpstreamUnreachable(UpstreamError):
    code = "upstream_unreachable"


class UpstreamBroken(UpstreamError):
    code = "upstream_broken"


class Upstream(Protocol):
    """Sends one attempt to one deployment. Retries and fallbacks are up to the pipeline, because they may need more budget."""

    async def send(self, deployment: Deployment, call: UpstreamCall) -> UpstreamAnswer:
        """Raises `UpstreamError`. An error status is returned as an answer. Cancelling closes the connection."""

    async def close(self) -> None: ...


# The provider's response headers that reach the client. All others are dropped (Set-Cookie, Connection, X-Accel-…).
FORWARDED_ANSWER_HEADERS: Final = frozenset(
    {
        "content-type",
        "retry-after",
        "retry-after-ms",
        "x-should-retry",
        "openai-processing-ms",
        "openai-version",
    }
)
FORWARDED_ANSWER_PREFIXES: Final = ("x-ratelimit-", "anthropic-ratelimit-")
