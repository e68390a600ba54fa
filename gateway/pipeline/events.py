"""The usage event of a call: what is known when it is reserved (the draft), and what its settlement adds (the detail)."""

from __future__ import annotations

from typing import Any, Final

import orjson

from gateway.pipeline.call import Call, Outcome
from policies.amounts import ZERO
from policies.pricing import Usage

# The code in the event of a call that an observed budget would have refused.
WOULD_REFUSE: Final = "would_refuse"


def draft_of(call: Call) -> bytes:
    """Whatever resolves the reservation completes the draft: this process, or the sweeper after a crash."""
    event: dict[str, Any] = {
        "request_id": call.id,
        "key_id": call.principal.key_id,
        "protocol": call.protocol.name,
        "stream": call.request.stream,
        "model_requested": call.request.model,
        "prompt_tokens_counted": call.count.tokens if call.count else 0,
    }
    if call.deployment is not None:
        event["model"], event["provider"] = call.deployment.name, call.deployment.provider
    tags = call.tags
    if tags.workflow is not None:
        event["workflow"], event["run"], event["step"] = tags.workflow, call.run, tags.step
        if tags.agent is not None:
            event["agent"] = tags.agent
        if tags.user is not None:
            event["user"] = tags.user
        parent_run = call.parent_run or tags.parent_run
        if parent_run is not None:
            event["parent_run"] = parent_run
    if call.intent is not None:
        event["intent"] = call.intent.intent
        event["intent_confidence"] = round(call.intent.confidence, 4)
        event["intent_source"] = call.intent.source
    return orjson.dumps(event)


def detail_of(call: Call, outcome: Outcome, usage: Usage | None, source: str) -> bytes:
    """What the settlement adds. Its fields override the draft's. A call that cost nothing has saved nothing, even if compressed."""
    saved = call.saved if usage is not None else ZERO
    event: dict[str, Any] = {
        "status": outcome.status,
        "code": outcome.code or (WOULD_REFUSE if call.grant is not None and call.grant.breaches else ""),
        "usage_source": source,
        "actions": ", ".join(call.actions),
        "saved_tokens": saved.tokens,
        "saved_nano_usd": saved.nano_usd,
        "duration_ms": call.timings.elapsed_ms,
        "overhead_us": call.timings.overhead_us,
    }
    if outcome.first_byte_ms is not None:
        event["first_byte_ms"] = outcome.first_byte_ms
    if call.arm is not None:
        event["arm"] = call.arm
    if call.deployment is not None:
        event["model"], event["provider"] = call.deployment.name, call.deployment.provider
    if call.grant is not None:
        held = call.grant.held
        event["reserved_tokens"], event["reserved_nano_usd"] = held.tokens, held.nano_usd
    if usage is not None:
        event["input_tokens"], event["output_tokens"] = usage.input_tokens, usage.output_tokens
        event["cache_read_tokens"], event["cache_write_tokens"] = usage.cache_read_tokens, usage.cache_write_tokens
        event["reasoning_tokens"] = usage.reasoning_tokens
    detail = intensity_inputs(call)
    if call.decisions:
        detail["decisions"] = call.decisions
    if detail:
        event["detail"] = detail
    return orjson.dumps(event)


def intensity_inputs(call: Call) -> dict[str, Any]:
    """The inputs of an agent's intensity: tools offered, tool results in the request, and which retry it is.

    Tool calls are counted when their results come back at the end of the next request, so that those of streams count too.
    """
    body, inputs = call.request.body, {}
    tools = body.get("tools")
    if isinstance(tools, list) and tools:
        inputs["tools"] = len(tools)
        tool_calls = tool_results(body.get("messages") or body.get("input"))
        if tool_calls:
            inputs["tool_calls"] = tool_calls
    if call.retry:
        inputs["retry"] = call.retry
    return {"seen": inputs} if inputs else {}


def tool_results(messages: Any) -> int:
    """The number of tool results at the end of a conversation, in any protocol's format."""
    if not isinstance(messages, list):
        return 0
    count = 0
    for message in reversed(messages):
        if not isinstance(message, dict):
            break
        if message.get("role") == "tool" or message.get("type") == "function_call_output":
            count += 1
            continue
        content = message.get("content")
        if message.get("role") == "user" and isinstance(content, list):
            count += sum(isinstance(part, dict) and part.get("type") == "tool_result" for part in content)
        break
    return count


def whole_event(call: Call, outcome: Outcome) -> bytes:
    """Draft and detail in one, for a call that was refused, failed before admission, or gave back its reservation."""
    return orjson.dumps(orjson.loads(draft_of(call)) | orjson.loads(detail_of(call, outcome, None, "none")))
