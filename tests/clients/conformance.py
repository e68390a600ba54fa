"""docs/protocols.md: what happens to every field and event that the vendors' own SDKs know, found out by trying each of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import anthropic.types as claude
import orjson
from anthropic.types import message_create_params
from openai.types import completion_create_params as plain_params
from openai.types import embedding_create_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import ResponseStreamEvent, response_create_params

from gateway.errors import BadRequest, StreamBroken
from gateway.wire.body import DENIED_KEYS
from gateway.wire.protocols import PROTOCOLS
from tests.gateway.wire_streams import Words

USER = [{"role": "user", "content": "say something"}]
# For each protocol: its path, a complete request, and the SDK's own list of fields.
REQUESTS: dict[str, tuple[str, dict[str, Any], type]] = {
    "Chat completions": (
        "/v1/chat/completions",
        {"model": "m", "messages": USER},
        chat_params.CompletionCreateParamsBase,
    ),
    "Responses": ("/v1/responses", {"model": "m", "input": "hi"}, response_create_params.ResponseCreateParamsBase),
    "Messages": (
        "/v1/messages",
        {"model": "m", "messages": USER, "max_tokens": 900},
        message_create_params.MessageCreateParamsBase,
    ),
    "Completions": (
        "/v1/completions",
        {"model": "m", "prompt": "hi"},
        plain_params.CompletionCreateParamsBase,
    ),
    "Embeddings": ("/v1/embeddings", {"model": "m", "input": "hi"}, embedding_create_params.EmbeddingCreateParams),
}
# Why the gateway reads a field. A field that is not listed here is forwarded unread.
READ = {
    "model": "chooses the deployment and its price; the provider receives the deployment's own name",
    "messages": "counted",
    "input": "counted",
    "prompt": "counted",
    "system": "counted",
    "instructions": "counted",
    "tools": "counted",
    "functions": "counted",
    "max_tokens": "reserved, and lowered to what fits",
    "max_completion_tokens": "reserved, and lowered to what fits",
    "max_output_tokens": "reserved, and lowered to what fits",
    "n": "reserved for each choice",
    "best_of": "reserved for each choice",
    "stream": "decides how the answer is relayed",
    "stream_options": "usage is always requested from the provider; its chunk reaches only clients that asked for it",
    "thinking": "its budget is lowered together with the answer's cap",
    "metadata": "may carry the tags, which are removed from a tagged call",
    "service_tier": "priced",
    "speed": "priced",
    "inference_geo": "priced",
    "prediction": "reserved in addition to the prompt: rejected prediction tokens are billed, too",
    "web_search_options": "one search is reserved and booked",
    "modalities": "an answer that may contain audio is reserved at the price of audio",
    "response_format": "counted, and used to classify the step's intent",
    "text": "its schema is counted",
    "tool_choice": "counted",
    "function_call": "counted",
    "previous_response_id": "reserved at the length that its last answer reported here, else 4,000 tokens; booked from the answer's usage",
    "conversation": "reserved at the length that its last answer reported here, else 4,000 tokens; booked from the answer's usage",
    "background": "true is refused, because what it spends later could not be seen",
}
UNREAD = {("/v1/messages", "tool_choice")}
ELSEWHERE = {
    (
        "/v1/responses",
        "prompt",
    ): "a stored prompt: its length is unknown before the call, and is booked from the answer's usage",
}
READ_EVENTS = {"message_start", "message_delta"}
# Valid values for the fields that the gateway checks; every other field is tried with an object that no provider knows.
SAMPLES: dict[str, Any] = {
    "max_tokens": 900,
    "max_completion_tokens": 900,
    "max_output_tokens": 900,
    "n": 2,
    "best_of": 3,
    "stream": False,
    "stream_options": {"include_usage": True},
    "background": False,
    "metadata": {"own": "x"},
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "service_tier": "default",
    "modalities": ["text"],
    "tools": [],
    "functions": [],
    "system": "Be brief.",
    "instructions": "Be brief.",
    "conversation": "conv_1",
    "previous_response_id": "resp_1",
    "echo": False,
    "suffix": "x",
    "dimensions": 8,
    "encoding_format": "float",
}
Row = tuple[str, str, str]


def field_rows(title: str) -> list[Row]:
    path, body, params = REQUESTS[title]
    names = sorted({"stream", *params.__annotations__} if title != "Embeddings" else params.__annotations__)
    return [(f"`{name}`", *verdict(path, body, name)) for name in names]


def verdict(path: str, body: dict[str, Any], name: str) -> tuple[str, str]:
    """`passed`: the provider receives the value unchanged. `used`: the gateway reads or changes it. `refused`: 400."""
    protocol = PROTOCOLS[path]
    value = body.get(name, SAMPLES.get(name, {"a field": "of tomorrow"}))
    try:
        request = protocol.parse(orjson.dumps({**body, name: value}))
    except BadRequest as error:
        return "refused", error.message
    forwarded = protocol.upstream_body(request, None, False)
    if name in READ and (path, name) not in UNREAD:
        return "used", ELSEWHERE.get((path, name), READ[name])
    if forwarded.get(name) != value:
        return "changed", f"to {forwarded.get(name)!r}"
    return "passed", ""


def event_rows(path: str, events: dict[str, dict[str, Any]]) -> list[Row]:
    return [(f"`{name}`", *event_verdict(path, value)) for name, value in events.items()]


def event_verdict(path: str, value: dict[str, Any]) -> tuple[str, str]:
    """What a client receives for one event in the middle of a stream."""
    protocol, counter = PROTOCOLS[path], Words()
    body = next(body for other, body, _ in REQUESTS.values() if other == path)
    relay = protocol.relay(protocol.parse(orjson.dumps({**body, "stream": True})), counter)
    event = f"event: {value['type']}\n".encode() + b"data: " + orjson.dumps(value) + b"\n\n"
    try:
        relayed = relay.feed(event)
    except StreamBroken:
        return "used", "ends the stream as an error, with the provider's own message"
    if relayed == event and value["type"] in READ_EVENTS:
        return "used", "its usage is read, and it is passed on"
    if relayed == event:
        return ("used", "its text is counted, and it is passed on") if counter.texts else ("passed", "")
    closed = relay.close(None)
    assert event in closed, (value["type"], relayed, closed)
    return "used", "is held back for the budget's final figures, then passed on"


def response_events() -> dict[str, dict[str, Any]]:
    members = get_args(get_args(ResponseStreamEvent)[0])
    names = sorted(get_args(member.model_fields["type"].annotation)[0] for member in members)
    whole: dict[str, object] = {
        "id": "r",
        "object": "response",
        "status": "completed",
        "model": "m",
        "output": [],
        "usage": None,
    }
    return {
        name: {"type": name, "delta": "words", "response": whole, "item": {}, "part": {}, "message": "m", "code": "c"}
        for name in names
    }


def message_events() -> dict[str, dict[str, Any]]:
    members = get_args(get_args(claude.RawMessageStreamEvent)[0])
    names = [get_args(member.model_fields["type"].annotation)[0] for member in members]
    events: dict[str, dict[str, Any]] = {
        name: {"type": name, "index": 0} for name in names if name != "content_block_delta"
    }
    events["message_start"]["message"] = {"usage": {"input_tokens": 1, "output_tokens": 1}}
    events["content_block_start"]["content_block"] = {"type": "text", "text": ""}
    events["message_delta"] |= {"delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}}
    for member in get_args(get_args(claude.RawContentBlockDelta)[0]):
        kind = get_args(member.model_fields["type"].annotation)[0]
        fields = {name: "words" for name in member.model_fields if name not in ("type", "citation")}
        event = {"type": "content_block_delta", "index": 0, "delta": {"type": kind, **fields}}
        events[f"content_block_delta: {kind}"] = event
    events |= {"ping": {"type": "ping"}, "error": {"type": "error", "error": {"type": "api_error", "message": "m"}}}
    return events


def document() -> str:
    return "\n".join(_lines()).rstrip() + "\n"


def _lines() -> Iterator[str]:
    yield from HEAD.strip().splitlines()
    for title, (path, _, _) in REQUESTS.items():
        yield from ("", f"## {title}: `POST {path}`", "", "| field | | |", "|---|---|---|")
        yield from (f"| {name} | {verdict} | {why} |" for name, verdict, why in field_rows(title))
    for title, path, events in (
        ("Events of Responses", "/v1/responses", response_events()),
        ("Events of Messages", "/v1/messages", message_events()),
    ):
        yield from ("", f"## {title}", "", "| event | | |", "|---|---|---|")
        yield from (f"| {name} | {verdict} | {why} |" for name, verdict, why in event_rows(path, events))
    yield from (
        "",
        "## Refused in every protocol",
        "",
        "These fields would choose the upstream's host, credential, transport or price:",
        "",
    )
    yield ", ".join(f"`{name}`" for name in sorted(DENIED_KEYS)) + "."


HEAD = """
# Protocols

What happens to every field and event that the vendors' SDKs know. A test tries each of them, writes this page and checks it
(`tests/clients/test_conformance.py`).

- **passed**: forwarded unchanged and unread. So are fields and events that the SDKs do not know yet.
- **used**: read by the gateway, for the purpose in the last column.
- **refused**: a 400 that names the field.

Chat and Completions have only one kind of event, the chunk: it is passed on and its text is counted; the last one, with `usage`, reaches
only clients that asked for it. A Messages or Responses client may use a model of a provider that does not speak its protocol:
LiteLLM then translates (`tests/clients/test_crossing_protocols.py`: buffered, streamed, with tools). A field that the other protocol cannot
express is a 400 that names it, or is left out with `litellm_settings.drop_params`. `previous_response_id`, `conversation` and
`prompt` only work with providers that speak Responses themselves; elsewhere they are a 400, because the model would be
asked without its history.

## Idempotency and caching

**`Idempotency-Key`** (1 to 255 characters). The same request under the same key gets the first answer again, buffered or
streamed, with `idempotent-replayed: true` and at no cost. Another request under the key is a 409 with
`x-should-retry: false`. While the first call is in flight, the 409 carries `retry-after: 1`, so that SDKs wait for its answer. Each
API key has its own idempotency keys. The call continues if its client disconnects, and the answer is there when the client asks again. A
call that failed or was refused may be made again. Answers are kept for a day (`answers.idempotency_seconds`), beside the SQLite ledger or
in the ledger's Redis, so they survive a restart, and any gateway can replay them. If a gateway is killed, the keys of its calls in flight
are free again at once (SQLite) or after a minute (Redis). While Redis is unreachable, a call with
a key is a 503 `idempotency_unavailable`, because nobody knows whether it was made before.

**`x-farebox-cache: SECONDS`** (1 to 86400). The exact-match cache: an identical request of the same project within that time is answered
from the store of idempotent answers, costs nothing, and has `x-farebox-cache: hit`. `model_info.cache_ttl_seconds`
turns it on for all calls of a model; `x-farebox-cache: off` makes a call bypass it. Answers to calls that a budget clamped, compressed or
rerouted are not cached. A stream is cached once it has ended properly, and a hit sends the whole stream at once. A hit is admitted like any
call, and its whole hold is then released: a paused run stays paused, and a run without room for the call is refused.

## Tools that the provider runs

They cost money in addition to tokens, at prices from the price map or `model_info`. The hold covers what the request allows (`max_uses`,
`max_tool_calls`, or one each); what the answer reports is booked:

- **Web search**: held at `search_context_cost_per_query`, for the most expensive context size; booked by the searches that the answer
  counts, or lists (Responses). An answer of Chat with `web_search_options` that reports no count is booked as one search.
- **Google Maps** (Gemini): `google_maps_grounding_cost_per_query`; booked by the answer's `google_maps_grounding_requests`.
- **File search** (Responses): `file_search_cost_per_1k_calls`, which no entry of the price map has, but `model_info` can set; booked by the
  answer's `file_search_call` items.
- **Code interpreter** (Responses): `code_interpreter_cost_per_session`, which the price map has for OpenAI and Azure; booked by the
  containers that the answer lists. A container that several answers used is booked with each.

Without a price, only their tokens are booked. What no answer reports cannot be booked: code that Anthropic runs and bills by the hour,
file storage, and images that a model draws with its tool, which are billed as another model's tokens. A provider's free allowances are
unknown here, so they are booked as if they were paid.
"""
