"""Logging: structlog, as lines for people or as JSON. The last processor before the renderer redacts secrets.

By value: every credential in the configuration, wherever it occurs (a provider's error that repeats the key, a traceback with
a URL). By pattern: keys of ours and of common kinds, which a client may have sent. The lines of libraries are redacted, too.
"""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any, Final, TextIO, cast
from urllib.parse import urlsplit

import structlog

from gateway.config.schema import Config
from gateway.upstream.credentials import password_in, secrets_in

# By pattern, wherever they occur: our keys, those of OpenAI, Anthropic, Google, AWS, GitHub and Slack, JWTs, anything after
# "Bearer", passwords in URLs and keys in their queries.
_SECRETS: Final = re.compile(
    r"\b(?:fb_[0-9A-Za-z]{8}|sk-[0-9A-Za-z_-]{8}|AIza[0-9A-Za-z_-]{20}|AKIA[0-9A-Z]{12}|gh[pousr]_[0-9A-Za-z]{20}"
    r"|xox[abeoprs]-[0-9A-Za-z-]{8}|eyJ[0-9A-Za-z_-]{10}|[Bb]earer\s+\S{4})[0-9A-Za-z._~+/=-]*"
)
_IN_URL: Final = re.compile(
    r"(://[^\s/:@]*:)[^\s/@]+(?=@)|([?&](?:api[_-]?key|key|token|sig|signature|password)=)[^\s&\"']+", re.I
)
_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
# A shorter value cannot be told from a word.
_VALUE_CHARACTERS_MIN: Final = 6
_PLAIN: Final = (bool, int, float, type(None))
_DEPTH_MAX: Final = 6

Redact = Callable[[str], str]


def redactor(values: Iterable[str] = ()) -> Redact:
    """Returns a function that removes these values, and anything that looks like a secret, from a text."""
    secrets = sorted({value for value in values if len(value) >= _VALUE_CHARACTERS_MIN}, key=len, reverse=True)
    by_value = re.compile("|".join(map(re.escape, secrets))) if secrets else None

    def redact(text: str) -> str:
        if by_value is not None:
            text = by_value.sub("…", text)
        text = _IN_URL.sub(lambda match: (match[1] or match[2]) + "…", text)
        return _SECRETS.sub(lambda match: match[0][:6] + "…", text)

    return redact


def secrets_of(config: Config, environment: Mapping[str, str]) -> set[str]:
    """Every credential that this process was given: of models, engines, the webhook, the collector, and the admin key."""
    environment = {**environment, **config.environment_variables}
    secrets = {environment.get("FAREBOX_ADMIN_KEY", "")}
    for model in config.model_list:
        secrets |= secrets_in(model.litellm_params)
    for url in (config.storage.ledger, config.storage.store, config.alerts.webhook, config.tracing.endpoint):
        secrets |= password_in(url or "")
    # The path of a webhook is its secret.
    if config.alerts.webhook is not None:
        secrets.add(urlsplit(config.alerts.webhook).path.strip("/"))
    secrets |= set(config.tracing.headers.values())
    # Providers' libraries read these, whether or not the configuration names them.
    secrets |= {value for name, value in environment.items() if name.endswith(("_API_KEY", "_SECRET_ACCESS_KEY"))}
    return secrets - {""}


def set_up_logging(log_format: str, level: str, secrets: Iterable[str] = ()) -> None:
    """Log to standard error. `log_format`: console or json.

    Libraries only log warnings and above, whatever the level, because some log whole requests. In JSON, their lines have the
    same form as ours, with a `logger`; for people they are the message alone, which also says why a gateway does not start.
    """
    redact, is_json = redactor(secrets), log_format == "json"
    renderer: Any = (
        structlog.processors.JSONRenderer() if is_json else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )

    def take_secrets_out(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {key: redacted(value, redact) for key, value in event.items()}

    stamp: list[Any] = [structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso", utc=True)]
    render: list[Any] = [structlog.processors.format_exc_info, take_secrets_out, renderer]
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, *stamp, *render],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, _Lossy(sys.stderr))),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json([*stamp, structlog.stdlib.add_logger_name], render) if is_json else _Redacting(redact))
    logging.basicConfig(level=max(logging.WARNING, _LEVELS[level]), handlers=[handler], force=True)
    logging.captureWarnings(True)
    # These repeat parts of answers, which are none of the log's business.
    warnings.filterwarnings("ignore", "Pydantic serializer warnings")


class _Lossy:
    """What is logged must not end the call that it is about when the log cannot be written, perhaps because the disk is full.

    Not an `io` class: those flush when they are deleted, and at the exit of Python 3.13 there is nothing left to do that with.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


class _Json(structlog.stdlib.ProcessorFormatter):
    """Makes libraries' own lines like ours."""

    def __init__(self, stamp: list[Any], render: list[Any]) -> None:
        super().__init__(processors=[self.remove_processors_meta, *render], foreign_pre_chain=stamp)


class _Redacting(logging.Formatter):
    """Redacts libraries' own lines, including tracebacks."""

    def __init__(self, redact: Redact) -> None:
        super().__init__("%(message)s")
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        return self._redact(super().format(record))


def redacted(value: Any, redact: Redact, depth: int = 0) -> Any:
    """The same value with `redact` applied to every text in it; what is neither text nor number becomes text."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, _PLAIN):
        return value
    if depth < _DEPTH_MAX and isinstance(value, Mapping):
        return {str(key): redacted(item, redact, depth + 1) for key, item in value.items()}
    if depth < _DEPTH_MAX and isinstance(value, (list, tuple)):
        return [redacted(item, redact, depth + 1) for item in value]
    return redact(repr(value))
