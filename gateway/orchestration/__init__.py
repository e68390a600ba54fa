"""Intents, allocations, compression and routing of tagged calls."""

from gateway.orchestration.service import Orchestration

__all__ = ["Orchestration"]
