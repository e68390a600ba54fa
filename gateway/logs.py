"""Logs: structlog, as lines for people or as JSON, with secrets taken out by the last processor before the renderer."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Final

import structlog

# Keys of ours, of OpenAI's and Anthropic's kind, and whatever stands behind "Bearer": by their look, wherever they stand.
_SECRETS: Final = re.compile(r"\b(?:fb_[0-9A-Za-z]{8}|sk-[0-9A-Za-z_-]{8}|[Bb]earer\s+\S{4})[0-9A-Za-z._~+/=-]*")
_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def redact(text: str) -> str:
    return _SECRETS.sub(lambda match: match[0][:6] + "…", text)


def _redact_event(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = redact(value)
    return event


def set_up_logging(log_format: str, level: str) -> None:
    """To standard error. `log_format`: console or json."""
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _redact_event,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(
        level=_LEVELS["warning" if level == "info" else level],
        stream=sys.stderr,
        format="%(message)s",
        force=True,
    )
