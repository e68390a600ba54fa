"""Every field and event that the vendors' SDKs know passes, is used, or is refused by name; docs/protocols.md says which."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.clients import conformance

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("title", conformance.REQUESTS)
def test_every_sdk_field_is_passed_or_used(title: str) -> None:
    rows = conformance.field_rows(title)
    assert len(rows) >= 5
    assert [row for row in rows if row[1] not in ("passed", "used")] == []


@pytest.mark.parametrize("name", ["api_base", "base_url", "api_key", "extra_headers"])
@pytest.mark.parametrize("title", conformance.REQUESTS)
def test_field_that_would_choose_the_upstream_is_refused(title: str, name: str) -> None:
    path, body, _ = conformance.REQUESTS[title]
    assert conformance.verdict(path, body, name)[0] == "refused"


def test_every_sdk_event_is_passed_or_used() -> None:
    assert len(conformance.event_rows("/v1/responses", conformance.response_events())) > 40
    rows = {name: verdict for name, verdict, _ in conformance.event_rows("/v1/messages", conformance.message_events())}
    assert rows["`content_block_delta: text_delta`"] == "used"
    assert rows["`content_block_delta: signature_delta`"] == "passed"


def test_protocols_page_is_up_to_date() -> None:
    page = ROOT / "docs" / "protocols.md"
    if os.environ.get("FAREBOX_WRITE_DOCS"):
        page.write_text(conformance.document())
    assert page.read_text() == conformance.document(), "FAREBOX_WRITE_DOCS=1 with this test writes the page anew"
