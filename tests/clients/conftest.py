"""One gateway before one fake provider, for all tests of one client."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.acceptance.serving import Served
from tests.clients.serving_clients import serving_clients


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving_clients(tmp_path_factory.mktemp("clients")) as running:
        yield running
