"""The body and headers of a request in the direct lane. The client controls its own payload and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gateway.upstream.port import STREAMED, Deployment, UpstreamCall
from gateway.upstream.providers import provider_of, uses_max_completion_tokens

HOPS_HEADER: Final = "x-farebox-hops"
ANTHROPIC_VERSION: Final = "2023-06-01"
OUTPUT_CAPS: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens")

# The fields of an entry's `litellm_params` that are defaults for the request; the client's own values override them. All other
# fields are about the connection (keys, regions, limits) and never leave this process.
_DEFAULTS: Final = frozenset(
    {
        "dimensions",
        "encoding_format",
        "frequency_penalty",
        "logit_bias",
        "logprobs",
        "max_completion_tokens",
        "max_output_tokens",
        "max_tokens",
        "metadata",
        "modalities",
        "n",
        "parallel_tool_calls",
        "presence_penalty",
        "reasoning",
        "reasoning_effort",
        "response_format",
        "safety_identifier",
        "seed",
        "service_tier",
        "stop",
        "store",
        "temperature",
        "thinking",
        "tool_choice",
        "top_k",
        "top_logprobs",
        "top_p",
        "user",
        "verbosity",
    }
)
# Headers that are set here and nowhere else. Those of a call are ignored.
_RESERVED_HEADERS: Final = frozenset(
    {"authorization", "x-api-key", "api-key", "host", "content-length", "transfer-encoding", "connection", "cookie"}
    | {"accept-encoding", "content-type", "accept", "user-agent", HOPS_HEADER}
)


def request_defaults(deployment: Deployment, body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that the entry adds to this body: those that the client did not set. No output cap if it set any.

    They change what a call may cost (`n`, the caps), so add them before computing the worst case.
    """
    if _DEFAULTS.isdisjoint(deployment.params):
        return {}
    capped = any(body.get(name) is not None for name in OUTPUT_CAPS)
    return {
        name: value
        for name, value in deployment.params.items()
        if name in _DEFAULTS and value is not None and name not in body and not (capped and name in OUTPUT_CAPS)
    }


def request_body(deployment: Deployment, call: UpstreamCall) -> dict[str, Any]:
    """The client's own object with the provider's model name, the entry's defaults, and the `stream` that we want."""
    body = {**request_defaults(deployment, call.body), **call.body, "model": deployment.model}
    extra = deployment.params.get("extra_body")
    if extra is not None and isinstance(extra, Mapping):
        body.update({name: value for name, value in extra.items() if name not in call.body and name != "model"})
    if call.protocol in STREAMED:
        if call.stream:
            body["stream"] = True
        else:
            body.pop("stream", None)
            body.pop("stream_options", None)  # OpenAI refuses it for buffered answers
    if call.protocol == "chat":
        if provider_of(deployment).only_max_tokens:
            _move_output_cap(body, "max_completion_tokens", "max_tokens")
        elif "max_tokens" in body and uses_max_completion_tokens(deployment):
            _move_output_cap(body, "max_tokens", "max_completion_tokens")
    return body


def hops_of(headers: Mapping[str, str]) -> int:
    """How many gateways like this one the call has passed through; 0 if the header is missing or invalid."""
    value = headers.get(HOPS_HEADER)
    if value is None:
        return 0
    return int(value) if value.isascii() and value.isdigit() and len(value) < 4 else 0


def request_headers(deployment: Deployment, call: UpstreamCall, key: str | None) -> dict[str, str]:
    """Only the headers that the provider needs, with the credential in the form that it expects."""
    headers = {name: value for name, value in call.headers.items() if name not in _RESERVED_HEADERS}
    if call.protocol == "messages":
        headers.setdefault("anthropic-version", ANTHROPIC_VERSION)
    extra = deployment.params.get("extra_headers")
    if extra is not None and isinstance(extra, Mapping):
        headers.update({str(name).lower(): str(value) for name, value in extra.items()})
    if deployment.params.get("organization"):
        headers["openai-organization"] = str(deployment.params["organization"])
    headers["content-type"] = "application/json"
    headers["accept"] = "text/event-stream" if call.stream else "application/json"
    # A compressed answer would have to be decompressed to be counted, and a small one may expand to a huge one.
    headers["accept-encoding"] = "identity"
    headers["user-agent"] = "farebox"
    headers[HOPS_HEADER] = str(hops_of(call.headers) + 1)
    if key:
        headers.update(_credential_header(deployment, key))
    return headers


def _credential_header(deployment: Deployment, key: str) -> dict[str, str]:
    # Anthropic's OAuth tokens (from Claude Code's login) are bearer tokens; its API keys are not.
    if deployment.provider == "anthropic" and not key.startswith("sk-ant-oat"):
        return {"x-api-key": key}
    return {"authorization": f"Bearer {key}"}


def _move_output_cap(body: dict[str, Any], name: str, new_name: str) -> None:
    """Rename a cap. If both names are set, the smaller cap stays, because that is what was reserved."""
    caps = [cap for cap in (body.pop(name, None), body.get(new_name)) if cap is not None]
    if caps:
        body[new_name] = min(caps)
