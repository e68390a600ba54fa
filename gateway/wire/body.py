"""Parses a request body into one JSON object, strictly: what is priced must be what is forwarded."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import orjson

from gateway.errors import BadRequest

# If a key is repeated, each JSON parser picks one of the two values. If ours and the provider's disagreed, we would price one
# model and run another, so the keys that money depends on may appear only once.
ACCOUNTED_KEYS: Final = (
    "model",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "max_tokens_to_sample",
    "stream",
    "stream_options",
    "n",
    "best_of",
    "service_tier",
    "speed",
    "inference_geo",
    "metadata",
)
# No serializer escapes letters, but every parser reads an escaped key as the same key, so escapes could hide a repeated one.
_ESCAPED_LETTER: Final = re.compile(rb"\\u00[4-7][0-9a-fA-F]")
_QUOTED: Final = tuple((key, b'"' + key.encode() + b'"') for key in ACCOUNTED_KEYS)
_AS_KEY: Final = {key: re.compile(quoted + rb"\s*:") for key, quoted in _QUOTED}

# No request field may choose the upstream's host, credential, transport or price: these belong to the configuration.
DENIED_KEYS: Final = frozenset(
    {
        "api_base", "api_key", "api_type", "api_version", "base_url", "organization", "custom_llm_provider", "extra_headers",
        "extra_query", "headers", "http_client", "client", "proxy", "ssl_verify", "mock_response", "mock_tool_calls", "model_list",
        "fallbacks", "num_retries", "max_retries", "callbacks", "litellm_params", "litellm_metadata", "litellm_credential_name",
        "input_cost_per_token", "output_cost_per_token", "input_cost_per_second", "aws_access_key_id", "aws_secret_access_key",
        "aws_session_token", "aws_region_name", "aws_bedrock_runtime_endpoint", "vertex_credentials", "vertex_project",
        "vertex_location", "azure_ad_token", "azure_endpoint", "proxy_server_request", "secret_fields", "caching", "cache_key",
    }
)  # fmt: skip

# Keys of `metadata` that tag a call, see `gateway.tags`.
_TAG_KEYS: Final = ("workflow_id", "run_id", "step", "agent")


def parse_object(raw: bytes) -> dict[str, Any]:
    """Raises `BadRequest` for anything but one JSON object without denied keys or repeated accounted keys."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"The body is not valid JSON: {error}.", code="invalid_json") from None
    if not isinstance(body, dict):
        raise BadRequest("The body must be a JSON object.", code="invalid_json")
    denied = DENIED_KEYS & body.keys()
    if denied:
        raise forbidden(min(denied))
    # A key that is repeated in the outermost object is also in the parsed body, so only those are searched for, in one pass each.
    repeated = [key for key, quoted in _QUOTED if key in body and raw.count(quoted) > 1]
    if b"\\u00" in raw and _ESCAPED_LETTER.search(raw):
        repeated = list(ACCOUNTED_KEYS)
    elif repeated:
        repeated = _keys_dropped_by_parser(raw, body, repeated)
    if repeated:
        _reject_duplicates(raw, repeated)
    return body


def forbidden(name: str) -> BadRequest:
    return BadRequest.field(name, "may not be set by clients; the gateway's configuration sets it", "forbidden_field")


def strip_tags(body: dict[str, Any]) -> None:
    """Remove our tags from the `metadata` of a tagged call, and then an empty `metadata` from the body.

    The tags are meant for the gateway, and a provider may refuse the whole call because of them: Anthropic accepts only `user_id`,
    and OpenAI's chat accepts metadata only together with `store`.
    """
    metadata = body.get("metadata")
    if not isinstance(metadata, dict):
        return
    remaining = {key: value for key, value in metadata.items() if key not in _TAG_KEYS}
    body["metadata"] = remaining
    if not remaining:
        del body["metadata"]


def _keys_dropped_by_parser(raw: bytes, body: dict[str, Any], keys: list[str]) -> list[str]:
    """The keys of which the parser dropped a duplicate: serialized again, the body contains them less often.

    Nested keys and values of the same name survive, and this is much faster than parsing a large body again with Python's parser,
    which would block the event loop.
    """
    try:
        reserialized = orjson.dumps(body)
    except orjson.JSONEncodeError:
        return keys
    return [key for key in keys if len(_AS_KEY[key].findall(raw)) != reserialized.count(b'"' + key.encode() + b'":')]


def _reject_duplicates(raw: bytes, keys: Sequence[str]) -> None:
    """Only the outermost object counts, because nested objects may use the same names (a tool's parameter named "model")."""
    outermost: list[tuple[str, Any]] = []

    def remember(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        outermost[:] = pairs  # called for inner objects first, so that the outermost object is left at the end
        return dict(pairs)

    try:
        json.loads(raw, object_pairs_hook=remember)
    except (RecursionError, ValueError):
        raise BadRequest(
            "The body is nested too deeply, or holds a number that is too long.", code="invalid_json"
        ) from None
    names = Counter(name for name, _ in outermost)
    for key in keys:
        if names[key] > 1:
            raise BadRequest.field(key, "stands in the body twice", "duplicate_key")


def whole_number(body: dict[str, Any], key: str, minimum: int, maximum: int = 2**31 - 1) -> int | None:
    """An optional integer field. Raises `BadRequest` for other values, such as true, 1.0 or "1"."""
    value = body.get(key)
    if value is None:
        return None
    if type(value) is not int or value < minimum or value > maximum:
        raise BadRequest.field(key, f"must be a whole number from {minimum} to {maximum}")
    return value


def boolean(body: dict[str, Any], key: str) -> bool:
    value = body.get(key)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise BadRequest.field(key, "must be true or false")


def missing_or(key: str, value: Any, fault: str) -> BadRequest:
    """The error for an unusable required field: it is missing, or has this `fault`."""
    return BadRequest.field(key, "is missing", "missing_field") if value is None else BadRequest.field(key, fault)


def text(body: dict[str, Any], key: str, length_max: int = 512) -> str:

    value = body.get(key)
    if not isinstance(value, str) or not value:
        raise missing_or(key, value, "must be a non-empty string")
    if len(value) > length_max:
        raise BadRequest.field(key, f"is longer than {length_max} characters")
    return value
