"""One gateway that all attacks share, so that damage by one of them shows in the others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.acceptance.serving import Served, serving


@pytest.fixture(scope="package")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    budgets = [{"scope": "run", "match": "small", "tokens": 200}]
    with serving(tmp_path_factory.mktemp("attacked"), budgets=budgets) as running:
        yield running
        assert running.gateway.process is not None
        assert running.gateway.process.poll() is None, "an attack ended the gateway"
        assert "Traceback" not in running.gateway.log, running.gateway.log[-4000:]
