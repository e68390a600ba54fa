"""One request to an admin page, with the helpers that the page needs to answer it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from gateway.admin.authentication import Authenticator, Identity
from gateway.admin.formatting import page_path
from gateway.admin.rendering import DEFAULT_PROJECT, Renderer
from gateway.endpoints.access import Actor
from gateway.endpoints.api.route import ApiRequest, ApiServices
from gateway.endpoints.api.schema import NoBody, ProjectQuery
from gateway.errors import BadRequest
from gateway.store.database import Database

RequiredRole = Literal["public", "viewer", "admin"]
FORM_BYTES_MAX: Final = 4 * 1024 * 1024
_FIELDS_MAX: Final = 2_000

ModelT = TypeVar("ModelT", bound=BaseModel)
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class PageRequest:
    services: ApiServices
    authenticator: Authenticator
    renderer: Renderer
    http_request: Request
    request_id: str
    identity: Identity | None
    form: Mapping[str, str] = field(default_factory=dict)

    @property
    def actor(self) -> Actor:
        if self.identity is None:
            raise LookupError("a page that shows who is there must not be public")
        return self.identity.actor

    @property
    def is_admin(self) -> bool:
        return self.identity is not None and self.identity.actor.role == "admin"

    @property
    def store(self) -> Database:
        return self.services.parts.store

    @property
    def now_ms(self) -> int:
        return self.services.now_ms()

    @property
    def project(self) -> str:
        return self.http_request.query_params.get("project") or DEFAULT_PROJECT

    @property
    def name(self) -> str:
        """The name of the item that the page shows: from the path, or from the query if it cannot be part of a path."""
        return str(self.http_request.path_params.get("name") or self.http_request.query_params.get("name") or "")

    def param(self, name: str, default: str = "") -> str:
        return self.http_request.query_params.get(name, default)

    async def call_api(
        self,
        handle: Callable[[ApiRequest[Any, Any]], Awaitable[ResultT]],
        *,
        path: Mapping[str, str] | None = None,
        query: ProjectQuery | None = None,
        body: Any = None,
    ) -> ResultT:
        """Answer by a handler of the control API: what a page shows or changes is what the API shows or changes."""
        api_query = query or ProjectQuery(project=self.project)
        return await handle(
            ApiRequest(
                self.services, self.actor, self.request_id, path or {}, api_query, NoBody() if body is None else body
            )
        )

    def query(self, model: type[ModelT], **values: Any) -> ModelT:
        """A query of the API from the fields of this page's address that it knows; empty ones are not given."""
        names = {field.alias or name for name, field in model.model_fields.items()}
        parameters = {
            key: value for key, value in self.http_request.query_params.items() if key in names and value != ""
        }
        return model.model_validate({"project": self.project, **parameters, **values})

    def render(self, template: str, *, status: int = 200, **values: Any) -> Response:
        return self.renderer.render_page(self, template, status, values)

    def redirect(self, page: str, name: str = "", *, done: str = "", **query: str | None) -> Response:
        """Redirect to another page after a change."""
        project = None if self.project == DEFAULT_PROJECT else self.project
        return RedirectResponse(page_path(page, name, project=project, done=done, **query), 303)


PageHandler = Callable[[PageRequest], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Page:
    """`required_role` has no default, so that it cannot be forgotten."""

    method: Literal["GET", "POST"]
    path: str
    handle: PageHandler
    required_role: RequiredRole


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a form as browsers send it; of several with one name the last, as check boxes need it."""
    if request.method != "POST":
        return {}
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        raise BadRequest("Send a form (application/x-www-form-urlencoded).", status=415, code="unsupported_media_type")
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > FORM_BYTES_MAX:
            raise BadRequest.too_large(FORM_BYTES_MAX)
    try:
        pairs = parse_qsl(raw.decode(), keep_blank_values=True, max_num_fields=_FIELDS_MAX, errors="strict")
    except ValueError:
        raise BadRequest("The form cannot be read.", code="invalid_form") from None
    return dict(pairs)
