"""The first stages: authenticate the caller, read the request and its tags."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Final, Literal
from urllib.parse import parse_qsl

from gateway.budgets.budget_book import key_budgets
from gateway.control import Snapshot
from gateway.errors import AuthenticationFailed, BadRequest, KeysUnknown, ModelNotFound, PermissionDenied
from gateway.loopback import host_of, is_forwarded, is_loopback
from gateway.pipeline.call import LOCAL_PROJECT, Call, Principal
from gateway.pipeline.exchange import Exchange
from gateway.runs.registry import RunRegistry
from gateway.store.keys import ApiKey
from gateway.tags import read_tags
from gateway.wire.body import DENIED_KEYS, forbidden, strip_tags
from gateway.wire.protocol import WireProtocol
from policies.routing import is_auto

# Headers by which other gateways let callers choose the upstream. Ignoring them silently would look like accepting them.
_DENIED_HEADERS: Final = frozenset(
    {
        "api-base",
        "x-api-base",
        "x-base-url",
        "x-portkey-custom-host",
        "x-portkey-config",
        "x-litellm-api-base",
        "helicone-target-url",
        "x-target-url",
    }
)
# The client headers that are forwarded to the provider.
_FORWARDED: Final = (
    "anthropic-beta",
    "anthropic-version",
    "openai-beta",
    "x-farebox-hops",
    "traceparent",
    "tracestate",
)
_QUERY_FIELDS_MAX: Final = 100
_PRINCIPALS_MAX: Final = 20_000
_CREDENTIAL_HEADERS: Final = ("authorization", "x-api-key", "api-key")
# Who may call without a key, as long as there is no key at all.
OpenTo = Literal["nobody", "this machine", "anyone"]


class Intake:
    """`is_model` knows the public names of all models. Calls for other names are refused before they cost anything."""

    def __init__(
        self,
        *,
        snapshot: Callable[[], Snapshot],
        is_model: Callable[[str], bool],
        runs: RunRegistry,
        body_bytes_max: int,
        new_id: Callable[[], str],
        clock_ms: Callable[[], int],
        open_to: OpenTo,
    ) -> None:
        self._snapshot = snapshot
        self._is_model = is_model
        self._runs = runs
        self.body_bytes_max = body_bytes_max
        self._new_id = new_id
        self._clock_ms = clock_ms
        self._open_to: Final = open_to
        self._principals: dict[str, tuple[ApiKey, Principal]] = {}

    async def take(
        self, exchange: Exchange, protocol: WireProtocol, path_tags: Mapping[str, str], call_id: str
    ) -> Call:
        """Read the request and make it a call. Raises `GatewayError` if anything is wrong with it."""
        principal = self.authenticate(exchange.headers)
        refuse_destinations(exchange)
        raw = await exchange.read_body(self.body_bytes_max)
        call = Call(id=call_id, protocol=protocol, principal=principal, request=protocol.parse(raw))
        call.tags = read_tags(exchange.headers, path_tags, call.request.metadata, principal.defaults)
        if call.is_tagged and call.request.metadata is not None:
            strip_tags(call.request.body)
        call.forwarded_headers = {name: exchange.headers[name] for name in _FORWARDED if name in exchange.headers}
        call.retry = retry_of(exchange.headers)
        if call.tags.run is not None:
            call.raw = raw
        check_model(call.request.model, principal, self._is_model)
        if call.tags.workflow is not None:
            call.run = call.tags.run or await self._runs.implicit_run(principal.project, call.tags.workflow)
        call.timings.stop("tag")
        return call

    def authenticate(self, headers: Mapping[str, str]) -> Principal:
        """If no key exists, this machine or everyone may call; otherwise a valid key is required, without any fallback.

        FAREBOX_ADMIN_KEY counts as a key, although it cannot call models: whoever set it did not mean to leave models open.
        """
        snapshot = self._snapshot()
        credential = credential_of(headers)
        may_be_open = self._open_to != "nobody"
        if not snapshot.keys and snapshot.is_loaded and may_be_open:
            refuse_foreign_callers(headers, self._open_to)
            return Principal("", "local", LOCAL_PROJECT, is_anonymous=True, credential=credential)
        if not snapshot.is_loaded and (credential is not None or may_be_open):
            raise KeysUnknown
        if credential is None:
            raise AuthenticationFailed(
                "Send an API key: Authorization: Bearer fb_… (make one with `farebox keys create`)."
            )
        key = snapshot.find_key(credential, self._clock_ms())
        if key is None and not snapshot.keys:
            raise AuthenticationFailed(
                "There are no API keys yet: make one with `farebox keys create`. FAREBOX_ADMIN_KEY calls no models."
            )
        if key is None:
            raise AuthenticationFailed("The API key is unknown, revoked or expired.")
        if key.admin or key.role:
            raise PermissionDenied("This key administers Farebox; model calls need a key made without --admin.")
        return self._principal_of(key)

    def _principal_of(self, key: ApiKey) -> Principal:
        """Cached for each key until it changes: then the snapshot holds another object."""
        cached_key, principal = self._principals.get(key.id, (None, None))
        if principal is None or cached_key is not key:
            if len(self._principals) >= _PRINCIPALS_MAX:
                self._principals.clear()
            principal = principal_of(key)
            self._principals[key.id] = (key, principal)
        return principal

    def check_model(self, model: str, principal: Principal) -> None:
        check_model(model, principal, self._is_model)


def check_model(model: str, principal: Principal, is_model: Callable[[str], bool]) -> None:
    """Raises `BadRequest`, `PermissionDenied` or `ModelNotFound`."""
    if "://" in model:
        raise BadRequest.field("model", "is a name of the configuration, not an address", "forbidden_field")
    allowed = principal.allowed_models
    if allowed and not is_among(model, allowed):
        raise PermissionDenied(
            f"This key may not use the model {model[:200]!r}.", code="model_not_allowed", param="model"
        )
    if not is_model(model) and not is_auto(model):
        raise ModelNotFound(f"There is no model {model[:200]!r}; GET /v1/models lists what there is.", param="model")


def credential_of(headers: Mapping[str, str]) -> str | None:
    """Raises `BadRequest` for two different credentials, because we could only guess which one counts."""
    credential: str | None = None
    for name in _CREDENTIAL_HEADERS:
        value = headers.get(name)
        if value is None:
            continue
        candidate = value[7:].strip() if name == "authorization" and value[:7].lower() == "bearer " else value.strip()
        if credential is not None and candidate != credential:
            raise BadRequest.header(name, "differs from another credential of the same request")
        credential = candidate
    return credential or None


def principal_of(key: ApiKey) -> Principal:
    tags = {"workflow": key.workflow, "agent": key.agent, **key.tags}
    defaults = {name: value for name, value in tags.items() if value}
    concurrency = key.limits.get("concurrency")
    return Principal(
        key_id=key.id,
        key_name=key.name,
        project=key.project,
        defaults=defaults,
        allowed_models=key.allowed_models,
        concurrency_max=concurrency if isinstance(concurrency, int) else None,
        budgets=key_budgets(key.project, key.limits) if key.limits else (),
    )


def retry_of(headers: Mapping[str, str]) -> int:
    """The retry count that the OpenAI and Anthropic SDKs send. It is reported, and a retry never counts as a loop."""
    retries = headers.get("x-stainless-retry-count")
    if retries is None:
        return 0
    return int(retries) if len(retries) <= 3 and retries.isascii() and retries.isdecimal() else 0


def is_among(model: str, allowed: Sequence[str]) -> bool:
    """`allowed` holds names and patterns such as `openai/*`."""
    return model in allowed or any("*" in pattern and fnmatchcase(model, pattern) for pattern in allowed)


def refuse_destinations(exchange: Exchange) -> None:
    """No header or query parameter may choose the upstream's host, credential or price (P13)."""
    if not _DENIED_HEADERS.isdisjoint(exchange.headers):
        name = min(_DENIED_HEADERS & exchange.headers.keys())
        raise BadRequest.header(name, "does not choose the upstream here; the configuration does")
    if exchange.query:
        if exchange.query.count(b"&") >= _QUERY_FIELDS_MAX:
            raise BadRequest.field("query", f"has more than {_QUERY_FIELDS_MAX} fields")
        for name, _ in parse_qsl(exchange.query.decode("latin-1"), keep_blank_values=True):
            if name in DENIED_KEYS:
                raise forbidden(name)


def refuse_foreign_callers(headers: Mapping[str, str], open_to: OpenTo) -> None:
    """Where no key is required, neither a web page of another site nor somebody behind a proxy may spend the operator's money.

    Browsers send the page's origin with every POST. Apps use their own schemes, and other programs send no origin. A page whose
    origin is the request's own host counts as ours only if that is a loopback address, or if anyone may call: a foreign page can
    point its own name at this machine (DNS rebinding).
    """
    if open_to == "this machine" and is_forwarded(headers):
        raise AuthenticationFailed(
            "This request came through a proxy, so it needs an API key: make one with `farebox keys create`, "
            "or let anybody call with `farebox serve --allow-anonymous`."
        )
    origin = headers.get("origin")
    if origin is None:
        return
    scheme, _, origin_host = origin.partition("://")
    is_own = is_loopback(host_of(origin_host)) or (open_to == "anyone" and origin_host == headers.get("host"))
    if origin == "null" or (scheme in ("http", "https") and not is_own):
        raise PermissionDenied(
            "A page of another site may call models here only with an API key.", code="foreign_origin"
        )
