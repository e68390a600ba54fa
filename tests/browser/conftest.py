"""One gateway with some traffic for all browser tests of a file, and a client that keeps cookies and follows nothing."""

from __future__ import annotations

import http.client
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest

from tests.farebox_process import FareboxProcess, running_farebox, tagged

MODELS = [
    {
        "model_name": name,
        "litellm_params": {"model": f"openai/{name}", "mock_response": answer},
        "model_info": {"input_cost_per_token": price, "output_cost_per_token": 4 * price, "max_output_tokens": 1024},
    }
    for name, answer, price in (
        ("writer", "Revenue grew by four percent over the quarter, mostly in the north.", 1e-6),
        ("small", "Yes, they do.", 1e-7),
    )
]
CONFIG: dict[str, Any] = {
    "model_list": MODELS,
    "settings": {"orchestration_enabled": True},
    "budgets": [
        {"scope": "run", "match": "*", "tokens": 4000, "usd": 0.05},
        {"scope": "workflow", "match": "intake", "tokens": 100_000, "window": "day"},
        {"scope": "project", "match": "*", "usd": 5, "window": "month"},
    ],
}
PROMPTS = {
    "extract": "Extract the number, the date and the total as JSON from this document.",
    "draft": "Write a friendly letter to the customer about the delay.",
    "check": "Does this satisfy the rules? Answer yes or no.",
}


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    text: str


@dataclass
class Client:
    """A browser without a screen: it says where its forms come from, keeps its session, and shows redirects."""

    url: str
    headers: dict[str, str] = field(default_factory=lambda: {"sec-fetch-site": "same-origin"})
    cookie: str = ""

    def get(self, path: str, **headers: str) -> Reply:
        return self._send("GET", path, None, headers)

    def post(self, path: str, form: Mapping[str, str], **headers: str) -> Reply:
        content = {"content-type": "application/x-www-form-urlencoded"}
        return self._send("POST", path, urlencode(form), content | headers)

    def _send(self, method: str, path: str, body: str | None, headers: Mapping[str, str]) -> Reply:
        all_headers = {**self.headers, **{name.replace("_", "-"): value for name, value in headers.items()}}
        sent = {name: value for name, value in all_headers.items() if value}
        if self.cookie:
            sent["cookie"] = self.cookie
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=30)
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            reply_headers = {name.lower(): value for name, value in answer.getheaders()}
            text = answer.read().decode()
        finally:
            connection.close()
        if "set-cookie" in reply_headers:
            self.cookie = reply_headers["set-cookie"].partition(";")[0]
        return Reply(answer.status, reply_headers, text)


def make_traffic(gateway: FareboxProcess) -> None:
    """Calls of three steps in three runs, one of which is refused by the run's own budget, and one without any tag."""
    for number in (1, 2, 3):
        for step, prompt in PROMPTS.items():
            headers = tagged("intake" if number < 3 else "triage", f"r-{number}", step, agent=f"bot-{number % 2}")
            model = "small" if step == "check" else "writer"
            assert gateway.chat(prompt, headers, model=model, max_tokens=100).status == 200
    no_clamp = tagged("intake", "r-1", "draft", agent="bot-1", options="no-clamp")
    assert gateway.chat("Write a book.", no_clamp, model="writer", max_tokens=1024, n=8).status == 402
    assert gateway.chat("hi", model="small", max_tokens=20).status == 200


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FareboxProcess]:
    with running_farebox(_folder(tmp_path_factory), CONFIG) as running:
        make_traffic(running)
        yield running


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FareboxProcess]:
    """One with an admin key, so that people must log in."""
    environment = {"FAREBOX_ADMIN_KEY": "a-long-admin-key"}
    with running_farebox(_folder(tmp_path_factory), CONFIG, environment=environment) as running:
        yield running


@pytest.fixture
def client(gateway: FareboxProcess) -> Client:
    return Client(gateway.url)


def _folder(factory: pytest.TempPathFactory) -> Path:
    return factory.mktemp("gateway")
