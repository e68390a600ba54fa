"""Settings of all tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

# How long an example takes says more about the machine's other work than about the code: speed belongs into bench/.
settings.register_profile("farebox", deadline=None)
settings.load_profile("farebox")


@pytest.fixture
def hangups_count() -> Iterator[None]:
    """Tests that `nohup` started ignore hangups, and so would every gateway that they start."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(autouse=True)
def _forget_requests(request: pytest.FixtureRequest) -> None:
    """Tests that share a gateway share its provider. Each sees only its own requests there."""
    if "served" in request.fixturenames:
        request.getfixturevalue("served").provider.clear()
