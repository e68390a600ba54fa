"""How long the histories are that a provider keeps for its callers: whoever goes on from one pays for it again.

Known of answers that this process has seen; of others the count keeps back a fixed amount (`policies.tokens.responses`).
"""

from __future__ import annotations

from typing import Final

from cachetools import LRUCache

from gateway.pipeline.call import Call
from policies.pricing import Usage
from policies.tokens import PromptCount, with_history

_KEPT_MAX: Final = 50_000


class StoredHistories:
    def __init__(self) -> None:
        self._tokens: LRUCache[tuple[str, str], int] = LRUCache(_KEPT_MAX)

    def answered(self, call: Call, usage: Usage) -> None:
        """What was read and what was written is the history of the next call, less the reasoning that is left out of it."""
        for name in usage.kept_as:
            self._tokens[call.principal.project, name] = usage.input_tokens + usage.output_tokens

    def counted(self, call: Call, count: PromptCount) -> PromptCount:
        body = call.request.body
        conversation = body.get("conversation")
        name = body.get("previous_response_id") or (
            conversation.get("id") if isinstance(conversation, dict) else conversation
        )
        tokens = self._tokens.get((call.principal.project, name)) if isinstance(name, str) else None
        return count if tokens is None else with_history(count, tokens)
