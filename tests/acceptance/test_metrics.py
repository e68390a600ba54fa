"""What `/metrics` of a running gateway says about calls that it has just served or refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.acceptance.serving import Served, serving
from tests.farebox_process import tagged

pytestmark = pytest.mark.xdist_group("acceptance-metrics")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("metrics")) as running:
        yield running


def test_time_to_first_token_ends_at_the_first_event_and_not_at_the_headers(served: Served) -> None:
    """vLLM and others send the headers at once, and the first event when the model has read the prompt."""
    served.provider.script(first_chunk_delay_ms=400)
    reply, _ = served.stream(tagged())
    assert reply.status == 200
    assert served.metric("farebox_time_to_first_token_seconds_count") == 1
    assert served.metric("farebox_time_to_first_token_seconds_sum") >= 0.4


@pytest.mark.parametrize(
    ("body", "headers", "code"),
    [
        ("{", {}, "invalid_json"),
        (
            '{"model": "fake", "messages": [{"role": "user", "content": "hi"}]}',
            {"x-workflow-id": "a b"},
            "invalid_header",
        ),
        ('{"model": "other", "messages": [{"role": "user", "content": "hi"}]}', {}, "model_not_found"),
    ],
    ids=["unreadable body", "bad tag", "unknown model"],
)
def test_request_refused_before_it_is_a_call_is_counted(
    served: Served, body: str, headers: dict[str, str], code: str
) -> None:
    before = served.metric("farebox_requests_total", status="refused", route="chat")
    reply = served.gateway.request("POST", "/v1/chat/completions", body.encode(), headers)
    assert reply.json()["error"]["code"] == code
    assert served.metric("farebox_admissions_total", result="refused", reason=code) == 1
    assert served.metric("farebox_requests_total", status="refused", route="chat") == before + 1


def test_metrics_have_no_series_of_creation_times(served: Served) -> None:
    served.chat(tagged())
    assert b"_created" not in served.gateway.get("/metrics").body
