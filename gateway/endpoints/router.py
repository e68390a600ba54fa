"""The outermost ASGI application: model calls take a short path, everything else goes to the control application."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from gateway.endpoints.models_list import ModelsList, is_anthropic
from gateway.endpoints.request_id import with_request_id
from gateway.errors import BadRequest, GatewayError
from gateway.pipeline.exchange import ClientDisconnected, Exchange
from gateway.pipeline.intake import Intake, refuse_destinations
from gateway.pipeline.response_headers import ANTHROPIC_REQUEST_ID, encoded, error_headers, tag_headers
from gateway.tags import echoed_tags, read_tags, split_path
from gateway.wire import anthropic_errors, openai_errors
from gateway.wire.protocol import Request, WireProtocol
from gateway.wire.protocols import COUNT_TOKENS_PATHS, MESSAGES

Scope = Mapping[str, Any]
Asgi = Callable[[Any, Any, Any], Awaitable[None]]
_VERSION: Final = "/v1"
_MODELS: Final = "/models/"
_UNVERSIONED: Final = frozenset({"/models", "/messages/count_tokens"})


class Handler(Protocol):
    async def handle(self, exchange: Exchange, protocol: WireProtocol, path_tags: Mapping[str, str]) -> None: ...


class RequestRouter:
    """A pure ASGI application: no middleware, no request object and no router stands before a model call."""

    def __init__(
        self,
        *,
        protocols: Mapping[str, WireProtocol],
        handler: Handler,
        intake: Intake,
        control: Asgi,
        model_names: Callable[[], Sequence[str]],
        count_prompt: Callable[[Request], Awaitable[int]],
        new_id: Callable[[], str],
    ) -> None:
        self._protocols = protocols
        self._handler = handler
        self._intake = intake
        self._control = control
        self._model_names = model_names
        self._count_prompt = count_prompt
        self._new_id = new_id
        self._started_s = int(time.time())

    def __call__(self, scope: Scope, receive: Any, send: Any) -> Awaitable[None]:
        if scope["type"] != "http":
            return self._control(scope, receive, send)
        path: str = scope["path"]
        protocol = self._protocols.get(path)
        if protocol is not None and scope["method"] == "POST":
            return self._handler.handle(Exchange(scope, receive, send), protocol, {})
        if path.startswith(("/w/", "/v1/", _MODELS)) or path in self._protocols or path in _UNVERSIONED:
            return self._serve_rest(scope, receive, with_request_id(send, self._new_id), path)
        return self._control(scope, receive, with_request_id(send, self._new_id))

    async def _serve_rest(self, scope: Scope, receive: Any, send: Any, path: str) -> None:
        """Serve tagged paths, the list of models, and 404s for the rest of /v1. Nothing here reaches a provider unmetered."""
        exchange = Exchange(scope, receive, send)
        path_tags: Mapping[str, str] = {}
        try:
            path_tags, path = split_path(path)
            protocol = self._protocols.get(path)
            if protocol is not None and scope["method"] == "POST":
                await self._handler.handle(exchange, protocol, path_tags)
            elif scope["method"] in ("GET", "HEAD") and _is_models_path(path):
                await self._serve_models(exchange, path.removeprefix(_VERSION).removeprefix(_MODELS[:-1])[1:])
            elif path in COUNT_TOKENS_PATHS and scope["method"] == "POST":
                await self._count_tokens(exchange, path_tags)
            else:
                raise self._not_found_error(scope["method"], path)
        except ClientDisconnected:
            return
        except GatewayError as error:
            await self._refuse(exchange, error, path_tags)

    async def _serve_models(self, exchange: Exchange, name: str) -> None:
        """List all models, or show the one of this name, which may contain slashes."""
        principal = self._intake.authenticate(exchange.headers)
        models = ModelsList(self._model_names(), principal, exchange.headers, self._started_s)
        if name:
            self._intake.check_model(name, principal)
        await self._send_json(exchange, models.one(name) if name else models.all())

    async def _count_tokens(self, exchange: Exchange, path_tags: Mapping[str, str]) -> None:
        """Anthropic's token counting, answered by our own count: free, without a model call, a run or a reservation."""
        principal = self._intake.authenticate(exchange.headers)
        refuse_destinations(exchange)
        request = MESSAGES.parse_count(await exchange.read_body(self._intake.body_bytes_max))
        tags = read_tags(exchange.headers, path_tags, request.metadata, principal.defaults)
        self._intake.check_model(request.model, principal)
        tokens = await self._count_prompt(request)
        counted = [("x-workflow-prompt-tokens", str(tokens))] if tags.is_tagged else []
        await self._send_json(exchange, MESSAGES.count_answer(tokens), [*tag_headers(tags), *counted])

    async def _send_json(self, exchange: Exchange, body: bytes, extra_headers: Sequence[tuple[str, str]] = ()) -> None:
        request_id = self._new_id()
        ids = [("x-request-id", request_id), (ANTHROPIC_REQUEST_ID, request_id)]
        await exchange.answer(200, encoded([("content-type", "application/json"), *ids, *extra_headers]), body)

    async def _refuse(self, exchange: Exchange, error: GatewayError, path_tags: Mapping[str, str]) -> None:
        """Answer with an error: in Anthropic's format for its clients and for paths that look like its own, else in OpenAI's."""
        request_id = self._new_id()
        error.metadata.setdefault("request_id", request_id)
        shape = anthropic_errors if is_anthropic(exchange.headers) or "/messages" in exchange.path else openai_errors
        headers = error_headers(error, request_id, None, echoed_tags(exchange.headers, path_tags))
        await exchange.answer(error.status, encoded(headers), shape.error_body(error))

    def _not_found_error(self, method: str, path: str) -> GatewayError:
        is_asked = path in self._protocols or path in COUNT_TOKENS_PATHS
        if is_asked or _is_models_path(path):
            allowed = "POST" if is_asked else "GET, HEAD"
            message = f"{path[:200]} takes {allowed.partition(',')[0]}, not {method}."
            return BadRequest(message, status=405, code="method_not_allowed", headers={"allow": allowed})
        paths = [*self._protocols, *COUNT_TOKENS_PATHS, "/v1/models", "/v1/models/{model}"]
        there = ", ".join(sorted(name for name in paths if name.startswith(_VERSION)))
        return BadRequest(f"There is no {path[:200]}. There are: {there}.", status=404, code="not_found")


def _is_models_path(path: str) -> bool:
    return (path + "/").removeprefix(_VERSION).startswith(_MODELS)
