"""LiteLLM's own bookkeeping, which nobody here reads: left out.

After each answer LiteLLM looks up what it cost, under up to a dozen spellings of the model's name, and does so again to make a
record of the call for its callbacks, of which there are none. That is a quarter of what a call through it costs. Money is
reckoned from the gateway's own prices and settled in the ledger, never from what LiteLLM says or in a callback.
"""

from __future__ import annotations

import importlib
from contextvars import ContextVar
from typing import Any


def leave_out() -> ContextVar[bool]:
    """Once a process, after LiteLLM is imported. Returns LiteLLM's own mark for calls that it does not record."""
    logging = importlib.import_module("litellm.litellm_core_utils.litellm_logging").Logging
    logging.async_success_handler = _record_nothing  # what streams end with, which do not look at the mark
    # At its end a stream is priced again, and clients would be told that by LiteLLM's prices, as if the provider had said it.
    logging.response_cost_calculator = _price_nothing
    _leave_unpriced(importlib.import_module("litellm.litellm_core_utils.llm_response_utils.response_metadata"))
    mark: ContextVar[bool] = importlib.import_module("litellm._internal_context").is_internal_call
    return mark


async def _record_nothing(*_arguments: Any, **_fields: Any) -> None:
    return None


def _price_nothing(*_arguments: Any, **_fields: Any) -> None:
    return None


class Unpriced:
    """Takes the place of LiteLLM's record of a call where only its id and the answer's cost are asked of it."""

    litellm_call_id = None
    response_cost_calculator = staticmethod(_price_nothing)


def _leave_unpriced(module: Any) -> None:
    """The cost that LiteLLM hides beside an answer, for its proxy's headers."""
    hide = module.ResponseMetadata.set_hidden_params
    if getattr(hide, "is_unpriced", False):
        return

    def hide_unpriced(self: Any, logging_obj: Any, *arguments: Any, **fields: Any) -> None:
        hide(self, Unpriced, *arguments, **fields)

    hide_unpriced.is_unpriced = True  # type: ignore[attr-defined]
    module.ResponseMetadata.set_hidden_params = hide_unpriced
