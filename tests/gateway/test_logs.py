"""No secret reaches the log: known values are removed, and whatever looks like a secret."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator

import pytest
import structlog
from pydantic import BaseModel

from gateway.config.loading import parse_config
from gateway.observability.logs import redactor, secrets_of, set_up_logging

CONFIG = """
model_list:
  - model_name: m
    litellm_params: {model: openai/m, api_key: canary-of-the-provider, api_base: "https://u:canary-of-base@h/v1",
                     extra_headers: {x-token: canary-of-header}}
storage: {ledger: "redis://:canary-of-redis@h/0", store: "postgresql://u:canary%2Dof%2Dpg@h/db"}
alerts: {webhook: "https://hooks.example.com/services/canary-of-hook"}
tracing: {headers: {authorization: canary-of-collector}}
"""
CANARIES = [
    "canary-of-the-provider",
    "canary-of-base",
    "canary-of-header",
    "canary-of-redis",
    "canary-of-pg",
    "services/canary-of-hook",
    "canary-of-collector",
    "canary-of-admin",
    "canary-of-environment",
]
ENVIRONMENT = {"FAREBOX_ADMIN_KEY": "canary-of-admin", "GROQ_API_KEY": "canary-of-environment"}


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    before, level, settings = logging.root.handlers[:], logging.root.level, structlog.get_config()
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        set_up_logging("json", "debug", secrets_of(parse_config(CONFIG), ENVIRONMENT))
        yield written
        logging.captureWarnings(False)
    logging.basicConfig(level=level, handlers=before, force=True)
    structlog.configure(**settings)


def test_every_credential_of_the_configuration_is_a_known_secret() -> None:
    assert set(CANARIES) <= secrets_of(parse_config(CONFIG), ENVIRONMENT)


@pytest.mark.parametrize("canary", CANARIES)
def test_known_secret_is_removed_from_every_part_of_a_log_line(log: io.StringIO, canary: str) -> None:
    logger = structlog.get_logger()
    logger.error(
        f"told {canary}", text=f"Incorrect key {canary} given", nested={"a": [{"b": canary}]}, error=ValueError(canary)
    )
    try:
        raise RuntimeError(f"https://h/v1?x={canary}")
    except RuntimeError:
        logger.exception("failed")
        logging.getLogger("some.library").exception("also %s", canary)
    written = log.getvalue()
    assert canary not in written
    assert written.count("RuntimeError") >= 2
    assert json.loads(written.splitlines()[0])["nested"] == {"a": [{"b": "…"}]}


def test_every_line_is_json_even_of_libraries_and_with_tracebacks(log: io.StringIO) -> None:
    library = logging.getLogger("some.library")
    library.info("not interesting")
    library.warning("two\nlines of %s", "text")
    try:
        raise RuntimeError("broken\nin two")
    except RuntimeError:
        library.exception("failed")
        structlog.get_logger().exception("failed_too")
    warnings.warn("something is deprecated", UserWarning, stacklevel=1)
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    *others, warned = [(line["event"], line["level"], line.get("logger")) for line in lines]
    assert others == [
        ("two\nlines of text", "warning", "some.library"),
        ("failed", "error", "some.library"),
        ("failed_too", "error", None),
    ]
    assert "something is deprecated" in warned[0]
    assert warned[1:] == ("warning", "py.warnings")
    assert all("broken\nin two" in line["exception"] for line in lines[1:3])
    assert all(line["timestamp"].endswith("Z") for line in lines)


def test_warning_that_repeats_an_answer_is_not_logged(log: io.StringIO) -> None:
    class Answer(BaseModel):
        tokens: int

    Answer.model_construct(tokens="what the model said").model_dump()
    assert log.getvalue() == ""


@pytest.mark.parametrize(
    "secret",
    [
        "fb_cSnDPzQSEVfgHpgjP6jwYG7Q1ER3pd6X5cpv51ftrix4NThpV",
        "sk-proj-abcdefgh12345678",
        "sk-ant-REDACTED",
        "AIzaSyA1234567890abcdefghijklmnopqrstuv",
        "AKIAIOSFODNN7EXAMPLE",
        "ghp_0123456789abcdefghijklmnopqrstuvwxyz",
        "xoxb-123456789012-abcdef",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
        "Bearer anything-at-all",
        "postgresql://farebox:opensesame@db/farebox",
        "https://generativelanguage.googleapis.com/v1?key=opensesame&alt=sse",
    ],
)
def test_value_that_looks_like_a_secret_is_redacted(secret: str) -> None:
    redacted = redactor()(f"the provider said: {secret} is wrong")
    assert secret not in redacted
    assert "opensesame" not in redacted
    assert redacted.endswith(" is wrong") or "alt=sse" in redacted
    assert "…" in redacted


def test_line_without_secrets_is_unchanged() -> None:
    line = "Step 'draft' of run 'r-17' has 180 of 2500 tokens left; https://docs.example.com/a?page=2 task-force eyJ"
    assert redactor(["short"])(line) == line


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, which Linux has")
def test_log_on_a_full_disk_ends_no_call(log: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    with io.TextIOWrapper(io.FileIO("/dev/full", "w"), write_through=True) as full:
        monkeypatch.setattr(sys, "stderr", full)
        set_up_logging("console", "info")
        for _ in range(3):
            structlog.get_logger().error("ledger_out_of_reach", reason="the disk is full")
