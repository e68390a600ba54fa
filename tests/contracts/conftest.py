"""Every ledger contract test runs once on each engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.ledger.port import Ledger
from tests.contracts.engines import ENGINES, LedgerUnderTest


@pytest.fixture(params=ENGINES)
async def tested(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LedgerUnderTest]:
    async with ENGINES[request.param](tmp_path) as under_test:
        yield under_test


@pytest.fixture
def ledger(tested: LedgerUnderTest) -> Ledger:
    return tested.ledger
