"""docs/protocols.md: what becomes of every field and event that the vendors' own SDKs know. Found out by trying each of them."""

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
# Of each protocol: its path, a whole request, and the SDK's own list of fields.
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
# What the gateway reads a field for. A field that is not here goes upstream unread.
READ = {
    "model": "chooses the deployment and its price; upstream hears the deployment's own name",
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
    "stream_options": "usage is always asked of the upstream; the chunk reaches who asked for it",
    "thinking": "shortened with the answer when that is lowered",
    "metadata": "may carry the tags, which are taken out of a tagged call",
    "service_tier": "priced",
    "speed": "priced",
    "inference_geo": "priced",
    "prediction": "held beside the prompt: what the answer does not repeat is billed all the same",
    "web_search_options": "one search is held and booked",
    "modalities": "an answer that may be spoken is reserved at the price of sound",
    "response_format": "counted, and read to tell the step's intent",
    "text": "its schema is counted",
    "tool_choice": "counted",
    "function_call": "counted",
    "previous_response_id": "held is as much as its last answer told here, else 4,000 tokens; booked from the answer's usage",
    "conversation": "held is as much as its last answer told here, else 4,000 tokens; booked from the answer's usage",
    "background": "true is refused: what it spends later could not be seen",
}
UNREAD = {("/v1/messages", "tool_choice")}
ELSEWHERE = {
    ("/v1/responses", "prompt"): "a stored prompt: what it adds is not known here, and booked from the answer's usage",
}
READ_EVENTS = {"message_start", "message_delta"}
# A value that the gateway checks; every other field is tried with an object that no provider knows.
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
    """`passed`: upstream hears the very value. `used`: the gateway reads it, or changes it. `refused`: 400."""
    protocol = PROTOCOLS[path]
    value = body.get(name, SAMPLES.get(name, {"a field": "of tomorrow"}))
    try:
        request = protocol.parse(orjson.dumps({**body, name: value}))
    except BadRequest as error:
        return "refused", error.message
    forwarded = protocol.forwarded(request, None, False)
    if name in READ and (path, name) not in UNREAD:
        return "used", ELSEWHERE.get((path, name), READ[name])
    if forwarded.get(name) != value:
        return "changed", f"to {forwarded.get(name)!r}"
    return "passed", ""


def event_rows(path: str, events: dict[str, dict[str, Any]]) -> list[Row]:
    return [(f"`{name}`", *event_verdict(path, value)) for name, value in events.items()]


def event_verdict(path: str, value: dict[str, Any]) -> tuple[str, str]:
    """What a client gets of one event in the middle of a stream."""
    protocol, counter = PROTOCOLS[path], Words()
    body = next(body for other, body, _ in REQUESTS.values() if other == path)
    relay = protocol.relay(protocol.parse(orjson.dumps({**body, "stream": True})), counter)
    event = f"event: {value['type']}\n".encode() + b"data: " + orjson.dumps(value) + b"\n\n"
    try:
        given = relay.feed(event)
    except StreamBroken:
        return "used", "ends the stream as an error, with the provider's own words"
    if given == event and value["type"] in READ_EVENTS:
        return "used", "its usage is read, and it passes"
    if given == event:
        return ("used", "its text is counted, and it passes") if counter.texts else ("passed", "")
    closed = relay.close(None)
    assert event in closed, (value["type"], given, closed)
    return "used", "waits for the budget's last figures, then passes"


def response_events() -> dict[str, dict[str, Any]]:
    members = get_args(get_args(ResponseStreamEvent)[0])
    names = sorted(get_args(member.model_fields["type"].annotation)[0] for member in members)
    whole = {"id": "r", "object": "response", "status": "completed", "model": "m", "output": [], "usage": None}
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
        told = {name: "words" for name in member.model_fields if name not in ("type", "citation")}
        event = {"type": "content_block_delta", "index": 0, "delta": {"type": kind, **told}}
        events[f"content_block_delta: {kind}"] = event
    events |= {"ping": {"type": "ping"}, "error": {"type": "error", "error": {"type": "api_error", "message": "m"}}}
    return events


def document() -> str:
    return "\n".join(_lines()).rstrip() + "\n"


def _lines() -> Iterator[str]:
    yield from HEAD.strip().splitlines()
    for title, (path, _, _) in REQUESTS.items():
        yield from ("", f"## {title}: `POST {path}`", "", "| field | | |", "|---|---|---|")
        yield from (f"| {name} | {what} | {why} |" for name, what, why in field_rows(title))
    for title, path, events in (
        ("Events of Responses", "/v1/responses", response_events()),
        ("Events of Messages", "/v1/messages", message_events()),
    ):
        yield from ("", f"## {title}", "", "| event | | |", "|---|---|---|")
        yield from (f"| {name} | {what} | {why} |" for name, what, why in event_rows(path, events))
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

What becomes of every field and event that the vendors' SDKs know, found out by a test that tries each of them
(`tests/clients/test_conformance.py` writes this page and compares it).

- **passed**: goes through as it came, unread. So do fields and events that nobody knows yet.
- **used**: the gateway reads it, for what the last column says.
- **refused**: 400, with the name of the field.

Chat and Completions have one kind of event, the chunk: it passes, its text is counted, and the last one with `usage` reaches
only who asked for it. A Messages or Responses client may use a model of a provider that does not speak that protocol:
LiteLLM translates then (`tests/clients/test_crossing_protocols.py`: whole, in streams, with tools). What the other protocol has no
word for is a 400 that names it, or is left out with `litellm_settings.drop_params`. `previous_response_id`, `conversation` and
`prompt` mean something only where the provider speaks Responses itself; elsewhere they are a 400, because the model would be
asked without its history.

## Calls that are made again

**`Idempotency-Key`** (1 to 255 characters). The same key with the same request gets the first answer again, buffered or as a
stream, with `idempotent-replayed: true`, and nothing is paid. Another request under the key is a 409 with
`x-should-retry: false`; while the first call is under way the 409 carries `retry-after: 1`, so that SDKs wait for its answer. A
key belongs to an API key of a project. The call goes on when its client leaves: whoever asks again gets the answer. A call that
failed or was refused may be made again. Answers are kept for a day (`answers.idempotency_seconds`), beside the SQLite ledger or
in the ledger's Redis: a restart forgets none, and it does not matter which of several gateways is asked. A key that was in use
when its gateway was killed is free again at once (SQLite) or after a minute (Redis). While the Redis is out of reach a call with
a key is a 503 `idempotency_unavailable`: it cannot be known whether it was made.

**`x-farebox-cache: SECONDS`** (1 to 86400). The exact-match cache: the very same request of the same project is answered from
where idempotent answers are kept, for so long, costs nothing, and says `x-farebox-cache: hit`. `model_info.cache_ttl_seconds`
asks for it for all calls of a model; `x-farebox-cache: off` keeps a call away from it. What a budget clamped, compressed or
rerouted is not kept. A stream is kept once it has ended well, and a hit is the whole stream at once. A hit is admitted like any
call and its whole hold is given back: a paused run stays
paused, and a run without room for the call is refused it.

## Tools that the provider runs

They cost money beside tokens, by prices of the price map or of `model_info`. Held is what the request allows (`max_uses`,
`max_tool_calls`, or one each), booked what the answer tells:

- **Web search**: `search_context_cost_per_query`, the dearest of its sizes; by the searches that the answer counts, or shows (Responses).
  An answer of Chat with `web_search_options` that counts none is one.
- **Google Maps** (Gemini): `google_maps_grounding_cost_per_query`; by the answer's `google_maps_grounding_requests`.
- **File search** (Responses): `file_search_cost_per_1k_calls`, which no entry of the map has, and `model_info` may; by the answer's
  `file_search_call` items.
- **Code interpreter** (Responses): `code_interpreter_cost_per_session`, which the map has for OpenAI and Azure; by the containers that
  the answer shows. One that several answers used is booked with each.

Without a price they are booked by their tokens alone. What no answer tells is not booked: code that Anthropic runs and bills by the hour,
the storage of files, and images that a model has drawn by its tool, which cost what another model's tokens do. Free allowances
of a provider are not known here, and count as paid.
"""
