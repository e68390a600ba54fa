"""The lengths of histories that a provider stores for its clients: each call that continues one pays for all of it again.

Known only for answers that this process has seen. For others, a fixed amount is reserved (`policies.tokens.responses`).
"""

from __future__ import annotations

from typing import Final

from cachetools import LRUCache

from gateway.pipeline.call import Call
from policies.pricing import Usage
from policies.tokens import PromptCount, with_history

_REMEMBERED_MAX: Final = 50_000


class StoredHistories:
    def __init__(self) -> None:
        self._tokens: LRUCache[tuple[str, str], int] = LRUCache(_REMEMBERED_MAX)

    def remember(self, call: Call, usage: Usage) -> None:
        """Remember input plus output as the next call's history: an upper bound, since reasoning is left out of it."""
        for history_id in usage.stored_ids:
            self._tokens[call.principal.project, history_id] = usage.input_tokens + usage.output_tokens

    def with_stored_history(self, call: Call, count: PromptCount) -> PromptCount:
        body = call.request.body
        conversation = body.get("conversation")
        history_id = body.get("previous_response_id") or (
            conversation.get("id") if isinstance(conversation, dict) else conversation
        )
        tokens = self._tokens.get((call.principal.project, history_id)) if isinstance(history_id, str) else None
        return count if tokens is None else with_history(count, tokens)
