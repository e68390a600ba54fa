"""/api/keys: create, list, change, rotate and revoke API keys. A key is shown once; later, only its prefix is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from gateway.endpoints.access import ADMIN_KEY_VARIABLE
from gateway.endpoints.api.route import ApiRequest, Route, conflict, not_found
from gateway.endpoints.api.schema import (
    Instant,
    LimitBody,
    Line,
    ListQuery,
    Name,
    NoBody,
    Priority,
    ProjectQuery,
    Strict,
    instant_ms,
    paged,
)
from gateway.errors import BadRequest, GatewayError
from gateway.store import keys as keys_store
from gateway.store.keys import ApiKey, KeyNameTaken, KeyRequest
from gateway.timestamps import iso

_DAY_MS = 86_400_000
_TAGS = ("step", "user", "priority")
_LOCKED_OUT = (
    "There is no admin key yet: from now on only the command line on this machine can administer Farebox. "
    f"Make one with `farebox keys create --admin`, or start with {ADMIN_KEY_VARIABLE}."
)


@dataclass(frozen=True, slots=True)
class KeyView:
    """`prefix` is the part of a key that may be shown. `role` is admin, viewer, or empty for a key that calls models."""

    id: str
    name: str
    project: str
    prefix: str
    admin: bool
    role: str
    workflow: str
    agent: str
    step: str
    user: str
    priority: str
    allowed_models: tuple[str, ...]
    limits: dict[str, int | float | str]
    state: Literal["active", "expired", "revoked"]
    created_at: str | None
    created_by: str
    expires_at: str | None
    revoked_at: str | None


@dataclass(frozen=True, slots=True)
class ChangedKeyView(KeyView):
    warning: str | None


@dataclass(frozen=True, slots=True)
class NewKeyView(KeyView):
    """`key` is the plain key, which no other answer has."""

    key: str
    warning: str | None


@dataclass(frozen=True, slots=True)
class KeyList:
    keys: tuple[KeyView, ...]
    next: str | None


class KeyLimits(LimitBody):
    """What the key's calls may use per window (default: in total), and how many may be in flight at once."""

    window: Literal["total", "minute", "hour", "day", "month"] | None = None
    concurrency: Annotated[int, Field(ge=1, le=100_000, strict=True)] | None = None

    def stored(self) -> dict[str, int | str]:
        """The limits as they are stored; money as the text of an exact number of USD."""
        limits = self.model_dump(exclude_none=True)
        return limits | ({} if self.usd is None else {"usd": f"{self.usd}e-9"})


class KeyTerms(Strict):
    """The key's defaults for tags, its models and limits, and its expiry."""

    workflow: Name | None = Field(default=None, description="The workflow of calls that name none.")
    agent: Name | None = Field(default=None, description="The agent of calls that name none.")
    step: Name | None = Field(default=None, description="The step of tagged calls that name none.")
    user: Name | None = Field(default=None, description="The user of tagged calls that name none.")
    priority: Priority | None = Field(default=None, description="The priority of tagged calls that name none.")
    allowed_models: Annotated[tuple[Line, ...], Field(max_length=200)] | None = Field(
        default=None, description="Names, or patterns such as openai/*. None, or an empty list: all."
    )
    limits: KeyLimits | None = None
    expires_at: Instant | None = None
    expires_in_days: Annotated[float, Field(gt=0, le=36_500)] | None = None

    @model_validator(mode="after")
    def _refuse_two_expiries(self) -> KeyTerms:
        if self.expires_at is not None and self.expires_in_days is not None:
            raise ValueError("give expires_at or expires_in_days, not both")
        return self


class KeyBody(KeyTerms):
    """Without `admin` and `role`, the key calls models and cannot administer anything."""

    name: Line
    project: Name | None = Field(default=None, description="The project whose budgets it spends; default: the query's.")
    admin: bool = False
    role: Literal["admin", "viewer"] | None = None

    @model_validator(mode="after")
    def _refuse_two_roles(self) -> KeyBody:
        if self.admin and self.role == "viewer":
            raise ValueError("a key is either admin or viewer")
        return self


class KeyChange(KeyTerms):
    """Fields that are given are changed; null removes a value. Limits are replaced as a whole. What was used stays used: it is booked
    under the key's name, which cannot be changed therefore."""

    def edited(self, key: ApiKey, now_ms: int) -> ApiKey:
        fields_set = self.model_fields_set
        changes: dict[str, Any] = {
            name: getattr(self, name) or "" for name in ("workflow", "agent") if name in fields_set
        }
        if fields_set & set(_TAGS):
            merged = {**key.tags, **{name: getattr(self, name) for name in _TAGS if name in fields_set}}
            changes["tags"] = {name: value for name, value in merged.items() if value}
        if "allowed_models" in fields_set:
            changes["allowed_models"] = self.allowed_models or ()
        if "limits" in fields_set:
            changes["limits"] = {} if self.limits is None else self.limits.stored()
        if fields_set & {"expires_at", "expires_in_days"}:
            changes["expires_at_ms"] = _expiry(self, now_ms)
        return replace(key, **changes)


def _terms(view: KeyView, names: Sequence[str]) -> dict[str, Any]:
    """The values of these fields, as the audit log has them."""
    fields = ("expires_at" if name == "expires_in_days" else name for name in names)
    return {field: getattr(view, field) for field in fields}


class RotateBody(Strict):
    grace_seconds: Annotated[int, Field(ge=0, le=30 * 86_400, strict=True)] = Field(
        default=0, description="How long the old secret keeps working."
    )


async def create_key(request: ApiRequest[ProjectQuery, KeyBody]) -> NewKeyView:
    body, now_ms = request.body, request.services.now_ms()
    key_request = KeyRequest(
        name=body.name,
        project=body.project or request.project,
        admin=body.admin or body.role == "admin",
        role=body.role or "",
        workflow=body.workflow or "",
        agent=body.agent or "",
        tags={name: getattr(body, name) for name in _TAGS if getattr(body, name)},
        allowed_models=body.allowed_models or (),
        limits={} if body.limits is None else body.limits.stored(),
        expires_at_ms=_expiry(body, now_ms),
    )
    control = request.services.parts.control
    was_open = request.services.access.is_open()
    try:
        new = await control.change(keys_store.create(request.store, key_request, request.actor.name, now_ms))
    except KeyNameTaken:
        raise _name_taken(key_request.name, key_request.project) from None
    await request.audit("key.created", new.key.id, name=new.key.name, role=new.key.role, for_project=new.key.project)
    warnings = [_LOCKED_OUT] if was_open and not new.key.admin else []
    warnings += _missing_models(key_request.allowed_models, request)
    return _new(new.key, new.plain, now_ms, " ".join(warnings) or None)


def _name_taken(name: str, project: str) -> GatewayError:
    return conflict(
        f"There is another key {name!r} in project {project!r}, and a key's own budget goes by its name: both would spend it. "
        "Choose another name, or give that key a new secret instead.",
        "key_name_taken",
    )


def _missing_models(allowed: Sequence[str], request: ApiRequest[Any, Any]) -> list[str]:
    return [f"No model has the name {name!r} now." for name in allowed if not _is_configured(name, request)]


def _is_configured(name_or_pattern: str, request: ApiRequest[Any, Any]) -> bool:
    """Whether a model name or pattern matches a model of the configuration, in either direction."""
    names = [model.model_name for model in request.services.parts.config.model_list]
    return any(fnmatchcase(name, name_or_pattern) or fnmatchcase(name_or_pattern, name) for name in names)


async def list_keys(request: ApiRequest[ListQuery, NoBody]) -> KeyList:
    """The keys of all projects, unless the query names one."""
    project = request.query.project if "project" in request.query.model_fields_set else None
    api_keys = await keys_store.list_all(request.store, project)
    page, following = paged([_view(key, request.services.now_ms()) for key in api_keys], request.query)
    return KeyList(page, following)


async def get_key(request: ApiRequest[ProjectQuery, NoBody]) -> KeyView:
    return _view(await _find(request), request.services.now_ms())


async def change_key(request: ApiRequest[ProjectQuery, KeyChange]) -> ChangedKeyView:
    """Takes effect in this process at once, and in all others within two seconds."""
    api_key, now_ms = await _find(request), request.services.now_ms()
    changed_fields = sorted(request.body.model_fields_set)
    if not changed_fields:
        raise BadRequest(f"Say what to change: any of {', '.join(KeyChange.model_fields)}.", code="missing_field")
    request.body.edited(api_key, now_ms)  # raises what is wrong with the change before a row is locked
    edit = partial(request.body.edited, now_ms=now_ms)
    try:
        changed = await request.services.parts.control.change(keys_store.change(request.store, api_key.id, edit))
    except KeyNameTaken:
        raise _name_taken(api_key.name, api_key.project) from None
    if changed is None:
        raise conflict(f"Key {api_key.id} is revoked, and stays so: make a new one.", "key_revoked")
    old, new = (_terms(_view(key, now_ms), changed_fields) for key in (api_key, changed))
    await request.audit("key.changed", api_key.id, name=changed.name, changed=changed_fields, old=old, new=new)
    warning = " ".join(_missing_models(request.body.allowed_models or (), request)) or None
    return ChangedKeyView(**_fields(_view(changed, now_ms)), warning=warning)


async def revoke_key(request: ApiRequest[ProjectQuery, NoBody]) -> KeyView:
    """Takes effect in this process at once, and in all others within two seconds. Revoking a key again changes nothing."""
    api_key = await _find(request)
    revoked = await request.services.parts.control.change(
        keys_store.revoke(request.store, api_key.id, request.services.now_ms())
    )
    if api_key.revoked_at_ms is None:
        await request.audit("key.revoked", api_key.id, name=api_key.name)
    return _view(revoked or api_key, request.services.now_ms())


async def rotate_key(request: ApiRequest[ProjectQuery, RotateBody]) -> NewKeyView:
    api_key, now_ms = await _find(request), request.services.now_ms()
    grace_ms = request.body.grace_seconds * 1000
    new = await request.services.parts.control.change(keys_store.rotate(request.store, api_key.id, now_ms, grace_ms))
    if new is None:
        raise conflict(f"Key {api_key.id} is revoked, and stays so: make a new one.", "key_revoked")
    await request.audit("key.rotated", api_key.id, name=api_key.name, grace_seconds=request.body.grace_seconds)
    return _new(new.key, new.plain, now_ms, None)


async def _find(request: ApiRequest[ProjectQuery, Any]) -> ApiKey:
    """The key of the path: by id, or by a name that only one key has."""
    id_or_name = request.path["id"]
    everything = await keys_store.list_all(request.store)
    matching_keys = [key for key in everything if key.id == id_or_name]
    matching_keys = matching_keys or [key for key in everything if key.name == id_or_name and key.revoked_at_ms is None]
    if not matching_keys:
        raise not_found("key", id_or_name)
    if len(matching_keys) > 1:
        raise conflict(f"{len(matching_keys)} keys are named {id_or_name!r}: use the id.", "ambiguous_name")
    return matching_keys[0]


def _expiry(body: KeyTerms, now_ms: int) -> int | None:
    expires_ms = None
    if body.expires_at is not None:
        expires_ms = instant_ms(body.expires_at)
    elif body.expires_in_days is not None:
        expires_ms = now_ms + int(body.expires_in_days * _DAY_MS)
    if expires_ms is not None and expires_ms <= now_ms:
        raise BadRequest.field("expires_at", "is in the past")
    return expires_ms


def _state(key: ApiKey, now_ms: int) -> Literal["active", "expired", "revoked"]:
    if key.revoked_at_ms is not None:
        return "revoked"
    return "expired" if key.expires_at_ms is not None and key.expires_at_ms <= now_ms else "active"


def _view(key: ApiKey, now_ms: int) -> KeyView:
    return KeyView(
        id=key.id,
        name=key.name,
        project=key.project,
        prefix=key.prefix,
        admin=key.admin,
        role=key.role,
        workflow=key.workflow,
        agent=key.agent,
        step=key.tags.get("step", ""),
        user=key.tags.get("user", ""),
        priority=key.tags.get("priority", ""),
        allowed_models=key.allowed_models,
        limits={name: float(value) if name == "usd" else value for name, value in key.limits.items()},
        state=_state(key, now_ms),
        created_at=iso(key.created_at_ms),
        created_by=key.created_by,
        expires_at=iso(key.expires_at_ms),
        revoked_at=iso(key.revoked_at_ms),
    )


def _new(key: ApiKey, plain_key: str, now_ms: int, warning: str | None) -> NewKeyView:
    return NewKeyView(**_fields(_view(key, now_ms)), key=plain_key, warning=warning)


def _fields(view: KeyView) -> dict[str, Any]:
    return {name: getattr(view, name) for name in KeyView.__slots__}


ROUTES = (
    Route("GET", "/keys", list_keys, KeyList, "Keys, the newest first, without their secrets.", ListQuery),
    Route("POST", "/keys", create_key, NewKeyView, "Create a key. Only this answer has its secret.", body=KeyBody),
    Route(
        "POST",
        "/keys/{id}/rotate",
        rotate_key,
        NewKeyView,
        "Give a key a new secret. Its budgets and history are kept.",
        body=RotateBody,
        body_required=False,
    ),
    Route("GET", "/keys/{id}", get_key, KeyView, "One key."),
    Route(
        "PATCH",
        "/keys/{id}",
        change_key,
        ChangedKeyView,
        "Change a key's defaults, models, limits or expiry.",
        body=KeyChange,
    ),
    Route("DELETE", "/keys/{id}", revoke_key, KeyView, "Revoke a key for good."),
)
