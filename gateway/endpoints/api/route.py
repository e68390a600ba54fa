"""The definition of a control API route, and what its handler receives. `table` has all routes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from gateway.bookkeeping.catch_up import CatchUp
from gateway.endpoints.access import Access, Actor, Role
from gateway.endpoints.api.schema import NoBody, ProjectQuery
from gateway.errors import BadRequest
from gateway.runs.control import RunControl
from gateway.runs.view import RunViews
from gateway.store import audit
from gateway.store.audit import AuditEvent
from gateway.store.database import Database

if TYPE_CHECKING:
    from gateway.parts import Parts

Q = TypeVar("Q", bound=ProjectQuery)
B = TypeVar("B")


@dataclass(frozen=True, slots=True)
class ApiServices:
    """Everything that the handlers work with, created once."""

    parts: Parts
    access: Access
    views: RunViews
    control: RunControl
    catch_up: CatchUp
    now_ms: Callable[[], int]

    @property
    def store(self) -> Database:
        return self.parts.store


@dataclass(frozen=True, slots=True)
class ApiRequest(Generic[Q, B]):
    """One request, validated and authorised."""

    services: ApiServices
    actor: Actor
    request_id: str
    path: Mapping[str, str]
    query: Q
    body: B
    headers: Mapping[str, str] = field(default_factory=dict)  # in lower case

    @property
    def accept(self) -> str:
        return self.headers.get("accept", "")

    @property
    def store(self) -> Database:
        return self.services.parts.store

    @property
    def project(self) -> str:
        return self.query.project

    async def audit(self, action: str, target: str = "", *, run: str = "", **detail: Any) -> None:
        """Record a change in the audit log. Raises StoreUnavailable, after which the answer says that the change may have happened."""
        event = AuditEvent(
            self.services.now_ms(), self.actor.name, action, target, self.project, run, self.request_id, detail
        )
        await audit.append(self.store, [event])


@dataclass(frozen=True, slots=True)
class Route:
    """`answer` is the type that the handler returns, which OpenAPI documents (None: it returns a response itself)."""

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    path: str
    handle: Callable[[ApiRequest[Any, Any]], Awaitable[Any]]
    answer: Any
    summary: str
    query: type[ProjectQuery] = ProjectQuery
    body: Any = NoBody
    body_required: bool = True
    csv: bool = False  # the answer is also available as CSV
    omits_null: bool = False
    is_question: bool = False  # it changes nothing, and has a body only because what is asked is too long for a query

    @property
    def role(self) -> Role:
        """Looking and asking needs the role viewer, everything else admin."""
        return "viewer" if self.method == "GET" or self.is_question else "admin"

    @property
    def has_body(self) -> bool:
        return self.body is not NoBody

    @property
    def operation_id(self) -> str:
        return self.handle.__name__


def not_found(kind: str, name: str) -> BadRequest:
    return BadRequest(f"There is no {kind} {name[:200]!r}.", status=404, code="not_found")


def conflict(message: str, code: str = "conflict") -> BadRequest:
    return BadRequest(message, status=409, code=code)


@dataclass(frozen=True, slots=True)
class Deleted:
    id: str
    deleted: bool = True
