"""The effective complexity of a call: its agent's intensity and its own shape."""

from __future__ import annotations

from gateway.control import Snapshot
from gateway.pipeline.call import Call
from policies.complexity import effective_complexity, features_of, step_complexity
from policies.intents import Intent


def complexity_of(call: Call, snapshot: Snapshot) -> float:
    """0 to 10. An agent that nobody knows says nothing: the step alone counts then."""
    intent = call.intent.intent if call.intent is not None else Intent.GENERATE
    step = step_complexity(features_of(call.request.body), intent).score
    ais = snapshot.ais(call.principal.project, call.tags.agent) if call.tags.agent is not None else None
    return effective_complexity(ais, step)
