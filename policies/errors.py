"""The one tree of exceptions of the orchestration.

    OrchestrationError                 whatever goes wrong while deciding about a step
    ├── BudgetExceededError            more was asked for than is left, raised where a value cannot be returned
    ├── IntentClassificationError      an intent that is not one of the ten (also a ValueError)
    ├── CompressionError               a text could not be compressed within its quality floor
    └── RoutingError                   no model of the wanted tier can take the call

Inside the policies a refusal is a value; these are for the edge and for bugs. The docstring of a class is the message
of an instance that is raised without one.
"""

from __future__ import annotations


class OrchestrationError(Exception):
    """The orchestration of this step failed."""

    def __init__(self, message: str | None = None) -> None:
        # `python -OO` strips docstrings: the class name is then the best message there is.
        super().__init__(message or self.__doc__ or type(self).__name__)


class BudgetExceededError(OrchestrationError):
    """The budget does not hold what this step asks for."""


class IntentClassificationError(OrchestrationError, ValueError):
    """The value is not one of the ten intents."""


class CompressionError(OrchestrationError):
    """The text could not be compressed within its quality floor."""


class RoutingError(OrchestrationError):
    """No model of the wanted tier can take this call."""
