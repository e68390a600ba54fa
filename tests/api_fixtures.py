"""A plugin, to be named in `pytest_plugins` of a test module and never imported."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.api_client import Api, close_api, make_api


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    """Without any key: everybody on this machine may do everything."""
    opened = await make_api(tmp_path)
    yield opened
    await close_api(opened)
