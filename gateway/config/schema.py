"""The configuration: models and routes, budgets, storage, server. gateway/config/loading.py reads it.

`model_list` and `router_settings` are LiteLLM's, so that its users can keep their file. The file is the only source of
models; the store is the only source of keys and of everything made at run time.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, PrivateAttr, ValidationInfo, field_validator

from gateway.addresses import fault_of_url
from gateway.config.budgets import BudgetConfig, Strict
from gateway.config.faults import Fault, near, refuse
from gateway.config.model_entries import faults_of_info, faults_of_params
from policies.settings import PREFIX, SETTINGS, SettingError, SettingValue, conflicts, validated


class ModelConfig(Strict):
    """An entry of `model_list`, as in LiteLLM. Entries with the same name share its load."""

    model_name: Annotated[str, Field(min_length=1)]
    litellm_params: dict[str, Any]
    model_info: dict[str, Any] = Field(default_factory=dict)
    upstream: Literal["auto", "direct", "litellm"] = "auto"

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @field_validator("litellm_params")
    @classmethod
    def _can_be_called(cls, value: dict[str, Any]) -> dict[str, Any]:
        refuse(faults_of_params(value), value)
        return value

    @field_validator("model_info")
    @classmethod
    def _can_be_used(cls, value: dict[str, Any]) -> dict[str, Any]:
        refuse(faults_of_info(value), value)
        return value


class RouterSettings(Strict):
    """Those of LiteLLM's keys that concern forwarding."""

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
    """How LiteLLM translates requests: parameters that a provider does not support are errors, unless they may be dropped or modified."""

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
    retention_months: Annotated[int, Field(ge=1, le=1_200)] | None = None
    audit_days: Annotated[int, Field(ge=90, le=36_500)] | None = 400

    @field_validator("ledger")
    @classmethod
    def _ledger_engine(cls, value: str) -> str:
        shared = (
            "redis://",
            "redis+cluster://",
            "redis+sentinel://",
            "rediss://",
            "rediss+cluster://",
            "rediss+sentinel://",
        )
        return _with_scheme(value, ("sqlite:///", "memory://", *shared))

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
    """Answers that are kept to be returned again. `bytes_max` is per project, separately for idempotency and for the cache."""

    idempotency_seconds: Annotated[float, Field(ge=1, le=30 * 86_400)] = 86_400.0
    bytes_max: Annotated[int, Field(ge=65_536)] = 64 * 1024 * 1024
    answer_bytes_max: Annotated[int, Field(ge=1024)] = 8 * 1024 * 1024


class ClassifierConfig(Strict):
    """The model to ask when the rules and the trained model are not sure. None: no model is asked."""

    model: str | None = None
    wait: bool = False
    wait_ms: Annotated[int, Field(ge=1, le=500)] = 500
    cache_ttl_seconds: Annotated[float, Field(ge=1, le=366 * 86_400)] = 7 * 86_400.0


def _web_address(value: str | None) -> str | None:
    if value is not None and not value.startswith(("https://", "http://")):
        raise ValueError("must begin with https:// (or http:// for a host of your own)")
    return value


class CompressionConfig(Strict):
    """Options besides the 14 settings. `semantic_model` None: the first model of the fast tier."""

    memory_tokens_max: Annotated[int, Field(ge=0, le=100_000)] = 800
    semantic_model: str | None = None
    semantic_wait_seconds: Annotated[float, Field(gt=0, le=60)] = 10.0
    semantic_texts_max: Annotated[int, Field(ge=1, le=32)] = 4


class SavingsConfig(Strict):
    """The share `holdout_share` of the runs is neither compressed nor routed, so that the savings of the others can be measured."""

    holdout_share: Annotated[float, Field(ge=0, le=1)] = 0.0


class LoopConfig(Strict):
    """When a run is paused because its agent repeats itself; see gateway/pipeline/loop_breaker.py."""

    repeats: Annotated[int, Field(ge=0, le=10_000)] = 8
    requests: Literal["conversations", "all"] = "conversations"


class AlertConfig(Strict):
    private_networks: bool = False
    webhook: str | None = None
    budget_percent: Annotated[tuple[Annotated[int, Field(ge=1, le=100)], ...], Field(min_length=1)] = (50, 80, 100)
    loop_calls: Annotated[int, Field(ge=2)] | None = 60

    @field_validator("webhook")
    @classmethod
    def _check_address(cls, value: str | None, info: ValidationInfo) -> str | None:
        """Uses `private_networks`, which is therefore declared, and so validated, first."""
        allowed = info.data.get("private_networks", True)
        fault = None if value is None else fault_of_url(value, private_allowed=allowed)
        if value is not None and fault is not None:
            is_private = fault_of_url(value, private_allowed=True) is None
            hint = "; if it is a host of your own, set alerts.private_networks: true" if is_private else ""
            raise ValueError(f"{fault}{hint}")
        return value


class TracingConfig(Strict):
    """Spans for an OpenTelemetry collector. `endpoint` None: tracing is off, and OpenTelemetry is not loaded."""

    endpoint: str | None = None
    headers: dict[str, str] = Field(default_factory=dict)
    service_name: Annotated[str, Field(min_length=1)] = "farebox"
    sample_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    conventions: Literal["1.36", "1.41", "genai-0.1"] = "1.41"

    _address = field_validator("endpoint")(_web_address)


# The sections that environment variables can override: FAREBOX_SERVER_PORT, FAREBOX_STORAGE_LEDGER, …
SECTIONS_BY_VARIABLE: Final = ("server", "storage", "reservations", "alerts", "tracing")


class Config(Strict):
    model_list: tuple[ModelConfig, ...] = ()
    router_settings: RouterSettings = RouterSettings()
    litellm_settings: LiteLLMSettings = LiteLLMSettings()
    environment_variables: dict[str, str] = Field(default_factory=dict)
    tiers: TierConfig = TierConfig()
    budgets: tuple[BudgetConfig, ...] = ()
    settings: dict[str, Any] = Field(default_factory=dict)
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

    # Notes on keys in LiteLLM's own sections that have no effect here, one sentence each, with the place.
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
        reserved_names = [name for name in value if str(name).startswith("FAREBOX_")]
        refuse(
            (
                ((name,), "is read before this file is: set it in the environment of the process")
                for name in reserved_names
            ),
            value,
        )
        return {name: item if isinstance(item, str) else str(item) for name, item in value.items()}

    @field_validator("settings")
    @classmethod
    def _known_settings(cls, value: dict[str, Any]) -> dict[str, SettingValue]:
        checked, faults = _checked_settings(value)
        refuse(faults, value)
        return checked


def _checked_settings(values: dict[str, Any]) -> tuple[dict[str, SettingValue], list[Fault]]:
    checked: dict[str, SettingValue] = {}
    faults: list[Fault] = []
    for key, value in values.items():
        if key not in SETTINGS:
            faults.append(((key,), f"unknown setting{near(key, SETTINGS)}"))
            continue
        try:
            checked[key] = validated(key, value)
        except SettingError as error:
            faults.append(((key,), error.message))
    for clash in conflicts(checked):
        # The defaults do not conflict, so one of the conflicting keys is in the file.
        key_in_conflict = next(key for key in checked if key.removeprefix(PREFIX) in clash)
        faults.append(((key_in_conflict,), clash))
    return checked, faults


def _with_scheme(value: str, schemes: tuple[str, ...]) -> str:
    if not value.startswith(schemes):
        # without the value, which may contain a password
        raise ValueError(f"must begin with one of {', '.join(schemes)}")
    return value
