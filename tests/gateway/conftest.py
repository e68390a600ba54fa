"""Fixtures for the tests of the lanes; modules with another kind of `provider` or `lane` define their own."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest

from gateway.upstream.litellm_lane import LiteLLMLane
from tests.fake_provider import FakeProvider


@pytest.fixture
async def provider() -> AsyncIterator[FakeProvider]:
    async with FakeProvider() as running:
        yield running


@pytest.fixture
async def lane() -> AsyncIterator[LiteLLMLane]:
    litellm_lane = LiteLLMLane(environment=os.environ)
    await litellm_lane.ready()
    yield litellm_lane
    await litellm_lane.close()
