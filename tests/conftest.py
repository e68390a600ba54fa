"""Settings of all tests."""

from __future__ import annotations

from hypothesis import settings

# How long an example takes says more about the machine's other work than about the code: speed belongs into bench/.
settings.register_profile("farebox", deadline=None)
settings.load_profile("farebox")
