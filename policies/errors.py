"""The exception hierarchy of the orchestration.

    OrchestrationError                 anything that goes wrong while deciding about a step
    ├── BudgetExceededError            a demand above what is left, where a value cannot be returned
    ├── IntentClassificationError      an intent that is not one of the ten (also a ValueError)
    ├── CompressionError               a text could not be compressed within its quality floor
    └── RoutingError                   no model of the wanted tier can take the call

Inside the policies a refusal is a value; exceptions are for the edge and for bugs. The docstring of a class is its default
message.
"""

from __future__ import annotations


class OrchestrationError(Exception):
    """The orchestration of this step failed."""

    def __init__(self, message: str | None = None) -> None:
        # `python -OO` strips docstrings: then the class name is the best message there is.
        super().__init__(message or self.__doc__ or type(self).__name__)


class BudgetExceededError(OrchestrationError):
    """The budget does not hold what this step asks for."""


class IntentClassificationError(OrchestrationError, ValueError):
    """The value is not one of the ten intents."""


class CompressionError(OrchestrationError):
    """The text could not be compressed within its quality floor."""


class RoutingError(OrchestrationError):
    """No model of the wanted tier can take this call."""
