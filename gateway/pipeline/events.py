"""The usage event of a call: what is known when it is reserved (the draft), and what its end adds (the detail)."""

from __future__ import annotations

from typing import Any

import orjson

from gateway.pipeline.call import Call, Outcome
from policies.pricing import Usage


def draft_of(call: Call) -> bytes:
    """Completed by whoever resolves the reservation: this process, or the sweeper after a crash."""
    event: dict[str, Any] = {
        "request_id": call.id,
        "key_id": call.principal.key_id,
        "protocol": call.protocol.name,
        "stream": call.request.stream,
        "model_requested": call.request.model,
        "prompt_tokens_counted": call.count.tokens if call.count else 0,
    }
    if call.deployment is not None:
        event |= {"model": call.deployment.name, "provider": call.deployment.provider}
    if call.is_tagged:
        event |= {
            "workflow": call.tags.workflow,
            "run": call.run,
            "step": call.tags.step,
            "agent": call.tags.agent,
            "user": call.tags.user,
            "parent_run": call.tags.parent_run,
        }
    if call.intent is not None:
        event |= {
            "intent": call.intent.intent,
            "intent_confidence": round(call.intent.confidence, 4),
            "intent_source": call.intent.source,
        }
    return orjson.dumps({name: value for name, value in event.items() if value is not None})


def detail_of(call: Call, outcome: Outcome, usage: Usage | None, source: str) -> bytes:
    """What the end adds. Its fields beat the draft's."""
    event: dict[str, Any] = {
        "status": outcome.status,
        "code": outcome.code,
        "usage_source": source,
        "actions": ", ".join(call.actions),
        "saved_tokens": call.saved.tokens,
        "saved_nano_usd": call.saved.nano_usd,
        "duration_ms": call.timings.elapsed_ms,
        "overhead_us": call.timings.overhead_us,
    }
    if outcome.first_byte_ms is not None:
        event["first_byte_ms"] = outcome.first_byte_ms
    if call.deployment is not None:
        event |= {"model": call.deployment.name, "provider": call.deployment.provider}
    if call.grant is not None:
        event |= {"reserved_tokens": call.grant.held.tokens, "reserved_nano_usd": call.grant.held.nano_usd}
    if usage is not None:
        event |= {
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "cache_read_tokens": usage.cache_read_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
            "reasoning_tokens": usage.reasoning_tokens,
        }
    if call.decisions:
        event["detail"] = {"decisions": call.decisions}
    return orjson.dumps(event)


def whole_event(call: Call, outcome: Outcome) -> bytes:
    """Draft and detail in one, for calls without a reservation: refused ones and untagged ones."""
    return orjson.dumps(orjson.loads(draft_of(call)) | orjson.loads(detail_of(call, outcome, None, "none")))
