"""The intent and the effective complexity of a call, as compression and routing read them."""

from __future__ import annotations

from gateway.control import Snapshot
from gateway.pipeline.call import Call
from policies.complexity import effective_complexity, features_of, step_complexity
from policies.intents import Intent


def intent_of(call: Call) -> Intent:
    """`generate` for a call that was not classified."""
    return Intent(call.intent.intent) if call.intent is not None else Intent.GENERATE


def complexity_of(call: Call, snapshot: Snapshot) -> float:
    """0 to 10, from the agent's intensity and the shape of the call; for an agent without a score, from the shape alone."""

    step = step_complexity(features_of(call.request.body), intent_of(call)).score
    ais = snapshot.ais(call.principal.project, call.tags.agent) if call.tags.agent is not None else None
    return effective_complexity(ais, step)
