"""The configuration file: models and routes, budgets, storage, server. Faults are reported with line, column and field.

`model_list` and `router_settings` are LiteLLM's own, so that its users bring their file along. The file is the only source
for models; the store is the only source for keys and for what is made at run time.
"""

from __future__ import annotations

import difflib
import os
import pathlib
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from gateway.addresses import fault_of_url
from gateway.config_budgets import BudgetConfig, Strict
from gateway.litellm_sections import adopt
from gateway.marked_yaml import Mark, Path, read_marked
from policies.settings import SETTINGS, SettingError, conflicts, validated


class ConfigError(Exception):
    """One or more faults of the configuration file, one a line: `file:line:column: field: what is wrong`."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class ModelConfig(Strict):
    """One entry of `model_list`, as LiteLLM has it. Several entries of one name share its load."""

    model_name: Annotated[str, Field(min_length=1)]
    litellm_params: dict[str, Any]
    model_info: dict[str, Any] = Field(default_factory=dict)
    upstream: Literal["auto", "direct", "litellm"] = "auto"

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @field_validator("litellm_params")
    @classmethod
    def _names_a_model(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(value.get("model"), str) or not value["model"]:
            raise ValueError("litellm_params.model is missing: the provider's model, such as openai/gpt-4o-mini")
        return value


class RouterSettings(Strict):
    """LiteLLM's keys, as far as they concern forwarding."""

    num_retries: Annotated[int, Field(ge=0, le=10)] = 2
    retry_after: Annotated[float, Field(ge=0, le=60)] = 0.0
    timeout: Annotated[float, Field(gt=0, le=86_400)] = 600.0
    stream_timeout: Annotated[float, Field(gt=0, le=3600)] = 60.0
    allowed_fails: Annotated[int, Field(ge=0)] = 3
    cooldown_time: Annotated[float, Field(ge=0, le=3600)] = 5.0
    routing_strategy: Literal["simple-shuffle", "least-busy"] = "simple-shuffle"
    fallbacks: tuple[dict[str, list[str]], ...] = ()
    context_window_fallbacks: tuple[dict[str, list[str]], ...] = ()
    connect_timeout: Annotated[float, Field(gt=0, le=60)] = 5.0


class LiteLLMSettings(Strict):
    """How LiteLLM translates: what a provider does not take is an error, unless it may be left out or changed."""

    drop_params: bool = False
    modify_params: bool = False


class TierConfig(Strict):
    """Models of each tier, best first."""

    fast: tuple[str, ...] = ()
    balanced: tuple[str, ...] = ()
    powerful: tuple[str, ...] = ()


class StorageConfig(Strict):
    ledger: str = "sqlite:///.farebox/ledger.db"
    store: str = "sqlite:///.farebox/store.db"
    durability: Literal["normal", "strict"] = "normal"
    allow_eviction: bool = False
    spool: str = ".farebox/spool"
    outbox_cap: Annotated[int, Field(ge=1000)] = 1_000_000
    retention_months: Annotated[int, Field(ge=1)] | None = None
    audit_days: Annotated[int, Field(ge=90)] | None = 400

    @field_validator("ledger")
    @classmethod
    def _ledger_engine(cls, value: str) -> str:
        return _with_scheme(
            value, ("sqlite:///", "memory://", "redis://", "rediss://", "redis+cluster://", "redis+sentinel://")
        )

    @field_validator("store")
    @classmethod
    def _store_engine(cls, value: str) -> str:
        return _with_scheme(value, ("sqlite:///", "postgresql://"))


class ServerConfig(Strict):
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 4000
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    body_bytes_max: Annotated[int, Field(ge=1024)] = 32 * 1024 * 1024
    concurrency_max: Annotated[int, Field(ge=1)] = 4096
    key_concurrency_max: Annotated[int, Field(ge=1)] = 1024
    project_concurrency_max: Annotated[int, Field(ge=1)] | None = None
    new_runs_per_minute_max: Annotated[int, Field(ge=0)] = 6000
    connections_max: Annotated[int, Field(ge=16)] = 8192
    bodies_bytes_max: Annotated[int, Field(ge=1024)] = 1024**3
    header_seconds: Annotated[float, Field(gt=0, le=3600)] = 10.0
    stall_seconds: Annotated[float, Field(gt=0, le=3600)] = 60.0
    keep_alive_seconds: Annotated[float, Field(ge=1, le=3600)] = 75.0
    drain_seconds: Annotated[float, Field(ge=0, le=3600)] = 30.0
    metrics_auth: bool = False
    log_format: Literal["console", "json"] = "console"
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class ReservationConfig(Strict):
    """How holds are kept. Times in seconds."""

    ttl_seconds: Annotated[float, Field(ge=1, le=3600)] = 60.0
    sweep_seconds: Annotated[float, Field(ge=0.1, le=600)] = 5.0
    on_lost: Literal["charge", "release"] = "charge"
    output_tokens_min: Annotated[int, Field(ge=1, le=4096)] = 16
    slice_tokens: Annotated[int, Field(ge=32, le=65536)] = 512
    output_tokens_unknown: Annotated[int, Field(ge=16)] = 32_768
    implicit_run_silence_seconds: Annotated[float, Field(ge=1, le=86_400)] = 900.0


class AnswersConfig(Strict):
    """What is kept to be given again. `bytes_max` is of each project, for idempotency and for the cache alike."""

    idempotency_seconds: Annotated[float, Field(ge=1, le=30 * 86_400)] = 86_400.0
    bytes_max: Annotated[int, Field(ge=65_536)] = 64 * 1024 * 1024
    answer_bytes_max: Annotated[int, Field(ge=1024)] = 8 * 1024 * 1024


class ClassifierConfig(Strict):
    """The model that is asked when rules and the trained model are not sure. None: nobody is asked."""

    model: str | None = None
    wait: bool = False
    wait_ms: Annotated[int, Field(ge=1, le=500)] = 500
    cache_ttl_seconds: Annotated[float, Field(ge=1)] = 7 * 86_400.0


def _web_address(value: str | None) -> str | None:
    if value is not None and not value.startswith(("https://", "http://")):
        raise ValueError("must begin with https:// (or http:// for a host of your own)")
    return value


class CompressionConfig(Strict):
    """What the 14 settings leave open. `semantic_model` None: the first model of the fast tier."""

    memory_tokens_max: Annotated[int, Field(ge=0, le=100_000)] = 800
    semantic_model: str | None = None
    semantic_wait_seconds: Annotated[float, Field(gt=0, le=60)] = 10.0
    semantic_texts_max: Annotated[int, Field(ge=1, le=32)] = 4


class SavingsConfig(Strict):
    """`holdout_share` of the runs are neither compressed nor routed, so that what the others save can be measured."""

    holdout_share: Annotated[float, Field(ge=0, le=1)] = 0.0


class LoopConfig(Strict):
    """When a run is stopped because its agent repeats itself; see gateway/pipeline/loops.py."""

    repeats: Annotated[int, Field(ge=0, le=10_000)] = 8
    requests: Literal["conversations", "all"] = "conversations"


class AlertConfig(Strict):
    webhook: str | None = None
    budget_percent: Annotated[tuple[Annotated[int, Field(ge=1, le=100)], ...], Field(min_length=1)] = (50, 80, 100)
    private_networks: bool = False
    loop_calls: Annotated[int, Field(ge=2)] | None = 60

    @model_validator(mode="after")
    def _may_be_told(self) -> AlertConfig:
        fault = None if self.webhook is None else fault_of_url(self.webhook, private_allowed=self.private_networks)
        if fault is not None:
            own = "" if self.private_networks else "; if it is a host of your own, set alerts.private_networks: true"
            raise ValueError(f"alerts.webhook: {fault}{own}")
        return self


class TracingConfig(Strict):
    """Spans to an OpenTelemetry collector. None: there are none, and nothing of OpenTelemetry is loaded."""

    endpoint: str | None = None
    headers: dict[str, str] = Field(default_factory=dict)
    service_name: Annotated[str, Field(min_length=1)] = "farebox"
    sample_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    conventions: Literal["1.36", "1.41", "genai-0.1"] = "1.41"

    _address = field_validator("endpoint")(_web_address)


class Config(Strict):
    model_list: tuple[ModelConfig, ...] = ()
    router_settings: RouterSettings = RouterSettings()
    litellm_settings: LiteLLMSettings = LiteLLMSettings()
    environment_variables: dict[str, str] = Field(default_factory=dict)
    tiers: TierConfig = TierConfig()
    budgets: tuple[BudgetConfig, ...] = ()
    settings: dict[str, bool | int | float | str] = Field(default_factory=dict)
    storage: StorageConfig = StorageConfig()
    server: ServerConfig = ServerConfig()
    reservations: ReservationConfig = ReservationConfig()
    answers: AnswersConfig = AnswersConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    compression: CompressionConfig = CompressionConfig()
    savings: SavingsConfig = SavingsConfig()
    loops: LoopConfig = LoopConfig()
    alerts: AlertConfig = AlertConfig()
    tracing: TracingConfig = TracingConfig()

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    # What of LiteLLM's own sections means nothing here, a sentence each with its place.
    _ignored: tuple[str, ...] = PrivateAttr(default=())

    @property
    def ignored(self) -> tuple[str, ...]:
        return self._ignored

    def with_ignored(self, ignored: tuple[str, ...]) -> Config:
        self._ignored = ignored
        return self

    @field_validator("environment_variables", mode="before")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        own = [name for name in value if str(name).startswith("FAREBOX_")]
        if own:
            raise ValueError(f"{own[0]} is read before this file is: set it in the environment of the process")
        return {name: item if isinstance(item, str) else str(item) for name, item in value.items()}

    @field_validator("settings")
    @classmethod
    def _known_settings(cls, value: dict[str, Any]) -> dict[str, Any]:
        unknown = [key for key in value if key not in SETTINGS]
        if unknown:
            raise ValueError(f"unknown setting {unknown[0]!r}{_near(unknown[0], SETTINGS)}")
        try:
            checked = {key: validated(key, given) for key, given in value.items()}
        except SettingError as error:
            raise ValueError(str(error)) from error
        clashes = conflicts({key: spec.default for key, spec in SETTINGS.items()} | checked)
        if clashes:
            raise ValueError(clashes[0])
        return checked

    @model_validator(mode="after")
    def _names_resolve(self) -> Config:
        names = {model.model_name for model in self.model_list}
        for tier, models in self.tiers:
            for name in models:
                if not _fits(name, names):
                    raise ValueError(f"tiers.{tier} names {name!r}, which model_list does not have{_near(name, names)}")
        for field, model in (
            ("classifier.model", self.classifier.model),
            ("compression.semantic_model", self.compression.semantic_model),
        ):
            if model is not None and not _fits(model, names):
                raise ValueError(f"{field} is {model!r}, which model_list does not have{_near(model, names)}")
        if self.server.workers > 1 and self.storage.ledger.startswith(("sqlite", "memory")):
            raise ValueError(
                "server.workers is above 1, but an SQLite ledger belongs to one process: set storage.ledger to redis://… or workers to 1"
            )
        return self


def _fits(name: str, names: Collection[str]) -> bool:
    """Whether there is this model, or an entry such as `openai/*` for all of its provider."""
    return name in names or any("*" in one and fnmatchcase(name, one) for one in names)


def _with_scheme(value: str, schemes: tuple[str, ...]) -> str:
    if not value.startswith(schemes):
        raise ValueError(f"must begin with one of {', '.join(schemes)}")  # not what it is: it may hold a password
    return value


def _near(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def parse_config(text: str, name: str = "config.yaml", environ: Mapping[str, str] | None = None) -> Config:
    """Raises `ConfigError` with every fault found. `os.environ/NAME` values are resolved from `environ` (default: the process's)."""
    try:
        data, marks = read_marked(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise ConfigError([f"{where}: {error.problem}"]) from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError([f"{name}: {str(error).splitlines()[0]}"]) from error
    if not isinstance(data, dict):
        raise ConfigError([f"{name}:1:1: the file must hold keys such as model_list, not a {type(data).__name__}"])
    adopted = adopt(data)
    faults = [f"{_where(path, marks, name)}: {_field(path)}: {text}" for path, text in adopted.faults]
    found = _with_variables(os.environ if environ is None else environ, data.get("environment_variables"))
    resolved = _resolve_environment(adopted.data, found, (), faults, marks, name)
    if faults:
        raise ConfigError(faults)
    ignored = tuple(f"{_where(path, marks, name)}: {_field(path)}: {text}" for path, text in adopted.ignored)
    try:
        return Config.model_validate(resolved).with_ignored(ignored)
    except ValidationError as error:
        raise ConfigError([_fault(one, marks, name) for one in error.errors()]) from error


def load_config(path: pathlib.Path, environ: Mapping[str, str] | None = None) -> Config:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}."]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: cannot be read: {error}"]) from error
    return parse_config(text, str(path), environ)


def _with_variables(environ: Mapping[str, str], variables: Any) -> Mapping[str, str]:
    """The file's own variables, as LiteLLM has it, win over those of the process."""
    if not isinstance(variables, dict):
        return environ
    plain = {name: str(value) for name, value in variables.items() if not str(value).startswith("os.environ/")}
    return {**environ, **plain}


def _resolve_environment(
    value: Any,
    environ: Mapping[str, str],
    path: Path,
    faults: list[str],
    marks: dict[Path, Mark],
    name: str,
) -> Any:
    if isinstance(value, dict):
        return {
            key: _resolve_environment(item, environ, (*path, key), faults, marks, name) for key, item in value.items()
        }
    if isinstance(value, list):
        return [_resolve_environment(item, environ, (*path, at), faults, marks, name) for at, item in enumerate(value)]
    if isinstance(value, str) and value.startswith("os.environ/"):
        variable = value.removeprefix("os.environ/")
        if variable not in environ:
            faults.append(f"{_where(path, marks, name)}: {_field(path)}: the environment has no variable {variable}")
        return environ.get(variable)
    return value


def _fault(error: Any, marks: dict[Path, Mark], name: str) -> str:
    path = tuple(part for part in error["loc"] if not (isinstance(part, str) and part.startswith("function-")))
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = f"unknown key{_near(str(path[-1]), _fields_beside(path))}"
    return f"{_where(path, marks, name)}: {_field(path)}: {message}"


def _fields_beside(path: Path) -> list[str]:
    model: Any = Config
    for part in path[:-1]:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next((one for one in candidates if isinstance(one, type) and issubclass(one, BaseModel)), None)
        if model is None:
            return []
    return list(model.model_fields)


def _where(path: Path, marks: dict[Path, Mark], name: str) -> str:
    for length in range(len(path), -1, -1):
        mark = marks.get(path[:length])
        if mark is not None:
            return f"{name}:{mark.line}:{mark.column}"
    return name


def _field(path: Path) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or "the file"
