"""Turns off LiteLLM's own bookkeeping, which nothing here uses.

After each answer LiteLLM computes its cost, trying up to a dozen spellings of the model's name, and does so again to record the
call for its callbacks, of which there are none. That is a quarter of the CPU time of a call through LiteLLM. The gateway computes
costs from its own prices and settles them in the ledger, never from LiteLLM's figures or in a callback.
"""

from __future__ import annotations

import importlib
from contextvars import ContextVar
from typing import Any


def disable_bookkeeping() -> ContextVar[bool]:
    """Call once per process, after LiteLLM is imported. Returns LiteLLM's own flag for calls that it does not record."""
    logging = importlib.import_module("litellm.litellm_core_utils.litellm_logging").Logging
    logging.async_success_handler = _record_nothing  # called at the end of streams, which ignore the flag
    # LiteLLM prices a stream at its end, and clients would see its figure as if the provider had reported it.
    logging.response_cost_calculator = _price_nothing
    _skip_pricing(importlib.import_module("litellm.litellm_core_utils.llm_response_utils.response_metadata"))
    mark: ContextVar[bool] = importlib.import_module("litellm._internal_context").is_internal_call
    return mark


async def _record_nothing(*_arguments: Any, **_fields: Any) -> None:
    return None


def _price_nothing(*_arguments: Any, **_fields: Any) -> None:
    return None


class Unpriced:
    """Stands in for LiteLLM's record of a call where LiteLLM only reads the call's id and cost from it."""

    litellm_call_id = None
    response_cost_calculator = staticmethod(_price_nothing)


def _skip_pricing(module: Any) -> None:
    """Skip computing the cost that LiteLLM attaches to each answer for its proxy's headers."""
    hide = module.ResponseMetadata.set_hidden_params
    if getattr(hide, "is_unpriced", False):
        return

    def hide_unpriced(self: Any, logging_obj: Any, *arguments: Any, **fields: Any) -> None:
        hide(self, Unpriced, *arguments, **fields)

    hide_unpriced.is_unpriced = True  # type: ignore[attr-defined]
    module.ResponseMetadata.set_hidden_params = hide_unpriced
