"""The LiteLLM lane: reaches a hundred providers through LiteLLM, which translates to and from the client's protocol."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Mapping, MutableMapping
from types import MappingProxyType
from typing import Any, Final

from gateway.upstream.credentials import secrets_of
from gateway.upstream.error_bodies import error_body
from gateway.upstream.litellm_answer import LiteLLMStream, body_of, headers_of
from gateway.upstream.litellm_connections import collect_responses
from gateway.upstream.litellm_errors import answer_of, failure_of
from gateway.upstream.litellm_loading import LiteLLMLoader
from gateway.upstream.litellm_request import FUNCTIONS, call_arguments, forbidden_field
from gateway.upstream.port import (
    Deployment,
    UpstreamAnswer,
    UpstreamBroken,
    UpstreamCall,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from gateway.upstream.providers import PROVIDERS, credential
from gateway.upstream.timeouts import effective_timeouts

_STATE_FIELDS: Final = ("previous_response_id", "conversation", "prompt")
_NO_SETTINGS: Final[Mapping[str, Any]] = MappingProxyType({})


class LiteLLMLane:
    """`environment` is changed once, before LiteLLM is imported, which reads its switches from there."""

    def __init__(self, *, environment: MutableMapping[str, str], settings: Mapping[str, Any] = _NO_SETTINGS) -> None:
        self._environment = environment
        self._loader = LiteLLMLoader(environment=environment, settings=settings)

    def prepare(self) -> None:
        """Load LiteLLM in the background, so that the first call does not wait for it."""
        self._loader.begin()

    async def ready(self) -> None:
        """Wait until LiteLLM is loaded. Raises ImportError if it is not installed."""
        await self._loader.module()

    async def send(self, deployment: Deployment, call: UpstreamCall) -> UpstreamAnswer:
        """One attempt. Raises `UpstreamError`."""
        refusal = _field_refusal(deployment, call)
        if refusal is not None:
            return refusal
        try:
            litellm = await self._loader.module()
        except (ImportError, RuntimeError, AttributeError) as error:
            raise UpstreamUnreachable(f"LiteLLM, which this model needs, cannot be loaded: {error}") from error
        refusal = _stateful_refusal(litellm, deployment, call)
        if refusal is not None:
            return refusal
        timeouts = effective_timeouts(deployment, call)
        key = self._key(deployment, call)
        secrets = secrets_of(deployment, key)
        wait_s = (timeouts.first_byte_ms if call.stream else min(timeouts.first_byte_ms, timeouts.total_ms)) / 1000
        started_s = asyncio.get_running_loop().time()
        open_responses = collect_responses()
        self._loader.record_nothing()
        arguments = call_arguments(deployment, call, key, timeouts.total_ms / 1000, self._loader.switches)
        try:
            async with asyncio.timeout(wait_s):
                answer = await _litellm_function(litellm, call)(**arguments)
        except TimeoutError as error:
            raise UpstreamTimeout(f"The provider did not answer within {wait_s:g} s.") from error
        except Exception as error:  # LiteLLM raises anything; `answer_of` sorts it by its chain of causes
            if 300 <= open_responses.status < 400:
                raise UpstreamBroken(
                    f"The provider answered {open_responses.status}; redirects are never followed."
                ) from error
            return answer_of(error, deployment, call.protocol, secrets, succeeded=open_responses.succeeded)
        if call.stream and hasattr(answer, "__aiter__"):
            stream = LiteLLMStream(
                answer,
                call.protocol,
                open_responses=open_responses,
                idle_s=timeouts.idle_ms / 1000,
                deadline_s=started_s + timeouts.total_ms / 1000,
                secrets=secrets,
            )
            headers = {**headers_of(answer), "content-type": "text/event-stream; charset=utf-8"}
            return UpstreamAnswer(200, headers, deployment, "litellm", pieces=stream, close=stream.close)
        return _buffered(answer, deployment, secrets)

    async def close(self) -> None:
        """Close LiteLLM's pooled connections, if it was ever loaded."""
        if self._loader.loaded is None:
            return
        cleanup = importlib.import_module("litellm.llms.custom_httpx.async_client_cleanup")
        await cleanup.close_litellm_async_clients()

    def _key(self, deployment: Deployment, call: UpstreamCall) -> str | None:
        if deployment.provider not in PROVIDERS:
            return None  # the credential may be of any kind: LiteLLM finds it in the entry or in the environment
        key = credential(deployment, self._environment, call.client_credential)
        if key is None and deployment.params.get("api_base"):
            # Without a key LiteLLM would use the provider's environment variable, and send it to a foreign address.
            return "none"
        return key


def _litellm_function(litellm: Any, call: UpstreamCall) -> Any:
    return getattr(litellm, FUNCTIONS[call.protocol])


def _field_refusal(deployment: Deployment, call: UpstreamCall) -> UpstreamAnswer | None:
    field = forbidden_field(call.protocol, call.body)
    if field is None:
        return None
    message = (
        f"The field {field!r} is not one of this protocol, and would change what the gateway has set for this call."
    )
    return _bad_request(deployment, call, message, code="field_not_allowed")


def _stateful_refusal(litellm: Any, deployment: Deployment, call: UpstreamCall) -> UpstreamAnswer | None:
    """Refuse a Responses call that relies on stored state, if the provider's own protocol is stateless.

    LiteLLM would look for the earlier answer in its proxy's database and, without one, call the model without the history.
    """
    field = next((name for name in _STATE_FIELDS if call.body.get(name)), None)
    if field is None or call.protocol != "responses":
        return None
    config = litellm.utils.ProviderConfigManager.get_provider_responses_api_config
    if config(provider=deployment.provider, model=deployment.model) is not None:
        return None
    message = (
        f"The provider of {deployment.name!r} keeps no earlier answers for {field!r}: send the earlier items as input."
    )
    return _bad_request(deployment, call, message, code="unsupported_field")


def _bad_request(deployment: Deployment, call: UpstreamCall, message: str, *, code: str) -> UpstreamAnswer:
    body = error_body(call.protocol, 400, message, code=code)
    return UpstreamAnswer(400, {"content-type": "application/json"}, deployment, "litellm", body=body)


def _buffered(answer: Any, deployment: Deployment, secrets: tuple[str, ...]) -> UpstreamAnswer:
    try:
        body, content_type = body_of(answer)
    except (TypeError, ValueError) as error:
        raise failure_of(error, secrets, bytes_received=True) from error
    headers = {**headers_of(answer), "content-type": content_type}
    return UpstreamAnswer(200, headers, deployment, "litellm", body=body)
