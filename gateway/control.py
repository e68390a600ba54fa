"""The part of the store that the call path needs, in memory: settings, keys, workflows, budgets, scores of agents.

A snapshot is immutable and is replaced as a whole. The store is polled once a second for changes. While it is unreachable the
last snapshot stays. If there never was one, the defaults (with the first values of the configuration file) apply, without
keys; `is_loaded` is then False, so that this is not mistaken for a gateway that has no keys.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final, Literal, TypeVar

import structlog

from gateway.store import budgets, intensity, keys, settings, versions, workflows
from gateway.store.budgets import StoredBudget
from gateway.store.database import Database, StoreUnavailable
from gateway.store.intensity import Intensity
from gateway.store.keys import ApiKey
from gateway.store.versions import Subject
from gateway.store.workflows import Workflow
from gateway.tasks import cancel
from policies.settings import SETTINGS, SettingError, Settings, SettingValue, defaults, validated

POLL_MS: Final = 1_000
_NONE: Final[Mapping[Any, Any]] = MappingProxyType({})

_log = structlog.get_logger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class EffectiveSetting:
    """The current value of a setting, and where it comes from."""

    key: str
    value: SettingValue
    origin: Literal["default", "file", "store"]
    updated_at_ms: int = 0
    updated_by: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state at one moment. `generation` rises with every change that this process sees."""

    settings: Settings
    setting_rows: Mapping[str, EffectiveSetting]
    keys: Mapping[str, ApiKey] = field(default_factory=lambda: _NONE)  # by SHA-256 digest, hex
    workflows: Mapping[tuple[str, str], Workflow] = field(default_factory=lambda: _NONE)  # by (project, name)
    budgets: tuple[StoredBudget, ...] = ()
    agents: Mapping[tuple[str, str], Intensity] = field(default_factory=lambda: _NONE)  # by (project, agent)
    generation: int = 0
    is_loaded: bool = False

    def find_key(self, credential: str, now_ms: int) -> ApiKey | None:
        """The key for this text, if it may be used now. A text that is no key is recognised by its checksum, without a look-up."""
        if not keys.looks_like_key(credential):
            return None
        digest = keys.digest_of(credential)
        key = self.keys.get(digest)
        return key if key is not None and key.is_valid(digest, now_ms) else None

    def workflow(self, project: str, name: str) -> Workflow | None:
        return self.workflows.get((project, name))

    def ais(self, project: str, agent: str) -> float | None:
        """The agent's combined score; None while it is unknown."""
        score = self.agents.get((project, agent))
        return None if score is None else score.combined


def first_snapshot(first_values: Mapping[str, SettingValue] = _NONE) -> Snapshot:
    """The state before the store has answered: the defaults, overridden by the file's first values."""
    return _with_settings(Snapshot(Settings.from_values(), _NONE), {}, first_values)


class Control:
    """Keeps `snapshot` up to date. Reading it is an attribute access, so nothing on the call path waits."""

    def __init__(
        self, store: Database, first_values: Mapping[str, SettingValue] = _NONE, *, poll_ms: int = POLL_MS
    ) -> None:
        self._store = store
        self.first_values: Mapping[str, SettingValue] = dict(first_values)
        self._poll_ms = poll_ms
        self._versions: Mapping[str, int] = {}
        self._refresh_lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._listeners: list[Callable[[Snapshot], None]] = []
        self.snapshot = first_snapshot(self.first_values)
        self.is_store_available = False
        self.last_error = ""

    async def start(self) -> None:
        """Load once, then keep polling in the background. An unreachable store is no error: see `is_store_available`."""
        await self.refresh()
        self._task = asyncio.create_task(self._poll(), name="control-poll")

    async def stop(self) -> None:
        await cancel(self._task)
        self._task = None

    def subscribe(self, listener: Callable[[Snapshot], None]) -> None:
        """Call `listener` with every new snapshot, immediately and in the same task, so it must not wait."""
        self._listeners.append(listener)

    async def refresh(self) -> bool:
        """Reload what changed. Call it after writes of this process, so that they apply at once. False: the store is unreachable."""
        async with self._refresh_lock:
            try:
                await self._load()
            except StoreUnavailable as error:
                self._note_failure(error)
                return False
            self._note_success()
            return True

    async def change(self, write: Awaitable[T]) -> T:
        """Perform a write to the store and apply it here at once; in other processes it applies within the poll interval."""
        result = await write
        await self.refresh()
        return result

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._poll_ms / 1000)
            try:
                await self.refresh()
            except Exception as error:  # noqa: BLE001 - the last good snapshot stays, whatever is wrong with the next one
                self._note_failure(error)

    async def _load(self) -> None:
        # The versions are read first, so that a change during loading is loaded again at the next poll, and no change is missed.
        stored_versions = await versions.read(self._store)
        changed = [subject for subject in Subject if stored_versions.get(subject) != self._versions.get(subject)]
        if not changed:
            return
        snapshot, loaded, fault = self.snapshot, dict(self._versions), None
        for subject in changed:
            try:
                snapshot = await self._reloaded(snapshot, subject)
                loaded[subject] = stored_versions.get(subject, 0)
            except StoreUnavailable:
                raise
            except Exception as error:  # noqa: BLE001 - a budget written by another version must not keep a revoked key alive
                fault = fault or error
        if loaded != self._versions:
            self._versions = loaded
            # Without its keys, a gateway would pass for one that has none, and be open to everyone on its machine.
            is_loaded = Subject.KEYS in loaded
            self.snapshot = replace(snapshot, generation=self.snapshot.generation + 1, is_loaded=is_loaded)
            for listener in self._listeners:
                listener(self.snapshot)
        if fault is not None:
            raise fault

    async def _reloaded(self, snapshot: Snapshot, subject: Subject) -> Snapshot:
        match subject:
            case Subject.SETTINGS:
                return _with_settings(snapshot, await settings.get_all(self._store), self.first_values)
            case Subject.KEYS:
                return replace(snapshot, keys=_by_digest(await keys.list_all(self._store)))
            case Subject.WORKFLOWS:
                declared = await workflows.list_all(self._store)
                return replace(snapshot, workflows={(row.project, row.name): row for row in declared})
            case Subject.BUDGETS:
                return replace(snapshot, budgets=tuple(await budgets.list_all(self._store)))
            case Subject.AGENTS:
                scored = await intensity.current(self._store)
                return replace(snapshot, agents={(row.project, row.agent): row for row in scored})

    def _note_failure(self, error: Exception) -> None:
        if self.is_store_available or not self.last_error:
            _log.warning(
                "control_unavailable", error=str(error), serving="last" if self.snapshot.is_loaded else "defaults"
            )
        self.is_store_available = False
        self.last_error = str(error) or type(error).__name__

    def _note_success(self) -> None:
        if self.last_error:
            _log.info("control_recovered")
        self.is_store_available = True
        self.last_error = ""


def _by_digest(api_keys: list[ApiKey]) -> Mapping[str, ApiKey]:
    """Includes old digests: whether one is still within its grace period is decided when it is used."""
    by_digest = {key.old_digest: key for key in api_keys if key.old_digest is not None}
    return by_digest | {key.digest: key for key in api_keys}


def _with_settings(
    snapshot: Snapshot, rows: Mapping[str, settings.SettingRow], first_values: Mapping[str, SettingValue]
) -> Snapshot:
    current = {key: _effective_setting(key, rows.get(key), first_values) for key in SETTINGS}
    typed = Settings.from_values({key: setting.value for key, setting in current.items()})
    return replace(snapshot, settings=typed, setting_rows=MappingProxyType(current))


def _effective_setting(
    key: str, row: settings.SettingRow | None, first_values: Mapping[str, SettingValue]
) -> EffectiveSetting:
    """The store's value once somebody has set it; until then the file's, or else the seeded default."""
    if row is not None and row.updated_by:
        try:
            return EffectiveSetting(key, validated(key, row.value), "store", row.updated_at_ms, row.updated_by)
        # written by another version or by hand: one bad row must not affect the other 39
        except SettingError as error:
            _log.warning("setting_ignored", error=str(error))
    if key in first_values:
        return EffectiveSetting(key, validated(key, first_values[key]), "file")
    return EffectiveSetting(key, defaults()[key] if row is None else _valid_or_default(key, row.value), "default")


def _valid_or_default(key: str, value: SettingValue) -> SettingValue:
    try:
        return validated(key, value)
    except SettingError:
        return SETTINGS[key].default
