"""Templates, and what all pages share: navigation, colours, and headers that forbid foreign code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

from gateway import __version__
from gateway.admin import formatting, svg
from gateway.admin.formatting import page_path
from gateway.admin.static_files import StaticFiles
from gateway.admin.verdict import limits_sentence
from gateway.decisions import decisions_of

if TYPE_CHECKING:
    from gateway.admin.page_request import PageRequest

SECURITY_HEADERS: Final[Mapping[str, str]] = {
    "content-security-policy": (
        "default-src 'self'; base-uri 'none'; object-src 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_NAVIGATION: Final = (
    ("Watch", (("overview", "Overview"), ("runs", "Runs"), ("usage", "Usage"), ("agents", "Agents"))),
    ("Steer", (("workflows", "Workflows"), ("budgets", "Budgets"), ("settings", "Settings"), ("keys", "Keys"))),
    ("Check", (("audit", "Audit"), ("health", "Health"))),
)

DEFAULT_PROJECT: Final = "default"
# The messages that a page shows after a change. The address only has the key, so that a link cannot show any other text.
CONFIRMATIONS: Final[Mapping[str, str]] = {
    "saved": "Saved. It applies now, and in other processes within two seconds.",
    "reverted": "Taken back. That is in the history, too.",
    "unchanged": "Nothing was different, so nothing was changed.",
    "budget": "The run has its new budget.",
    "pause": "The run is paused: its calls are refused until it is resumed.",
    "resume": "The run goes on.",
    "complete": "The run is completed.",
    "cancel": "The run is cancelled. Calls under way end as they would.",
    "reset": "The run begins again with nothing spent. Every other total keeps what it had used.",
    "deleted": "Deleted.",
    "suggested": "The suggested budgets are set. They stand with all others under Budgets.",
    "revoked": "The key is revoked.",
    "login": "You are logged in.",
    "person": "The login is set. Sessions of before are over.",
    "disabled": "The login is disabled, and its sessions are over.",
}


class Renderer:
    """All templates, compiled. Making one takes a third of a second, so it is made in a thread."""

    def __init__(self, static: StaticFiles) -> None:
        self._environment = Environment(
            loader=PackageLoader("gateway.admin", "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._environment.filters |= {
            "count": formatting.count,
            "tokens": formatting.tokens,
            "usd": formatting.usd,
            "percent": formatting.percent,
            "timestamp": formatting.timestamp,
            "ago": formatting.ago,
            "duration": formatting.duration,
            "timestamp_ms": formatting.timestamp_of_ms,
            "pretty_json": formatting.pretty_json,
            "decisions": decisions_of,
            "facts": formatting.decision_facts,
            "with_code": formatting.with_code,
            "window": formatting.window_text,
            "setting_text": formatting.setting_text,
            "input_text": formatting.input_text,
        }
        self._environment.tests["saving"] = _saves_cost
        self._environment.globals |= {
            "static": static.path,
            "bullet_chart": svg.bullet_chart,
            "limits_sentence": limits_sentence,
            "share_bar": svg.share_bar,
            "sparkline": svg.sparkline,
            "line_chart": svg.line_chart,
            "navigation": _NAVIGATION,
            "version": __version__,
        }
        for name in self._environment.list_templates():
            self._environment.get_template(name)

    def render_page(self, page_request: PageRequest, template: str, status: int, values: Mapping[str, Any]) -> Response:
        text = self.render_fragment(page_request, f"{template}.html", values)
        return HTMLResponse(text, status)

    def render_fragment(self, page_request: PageRequest, template: str, values: Mapping[str, Any]) -> str:
        return self._environment.get_template(template).render(**_shared_values(page_request), **values)


def _saves_cost(actions: str) -> bool:
    """Whether any of these kinds of actions makes a call cheaper; others only say how its budget was kept."""
    return not {"compress", "route", "clamp"}.isdisjoint(actions.split("+"))


def _shared_values(page_request: PageRequest) -> dict[str, Any]:
    """The variables of every template."""
    project = None if page_request.project == DEFAULT_PROJECT else page_request.project

    def url(page: str, name: str = "", **query: str | None) -> str:
        return page_path(page, name, **{"project": project, **query})

    return {
        "page_request": page_request,
        "url": url,
        "project": project,
        "projects": _project_names(page_request),
        "now_ms": page_request.now_ms,
        "done": CONFIRMATIONS.get(page_request.param("done"), ""),
        "here": page_request.http_request.url.path.removeprefix("/admin").strip("/").partition("/")[0] or "overview",
    }


def _project_names(page_request: PageRequest) -> list[str]:
    """Those that keys and declared workflows name; the one that is looked at is always among them."""
    snapshot = page_request.services.parts.control.snapshot
    named = {key.project for key in snapshot.keys.values()} | {project for project, _ in snapshot.workflows}
    return sorted(named | {page_request.project, DEFAULT_PROJECT})
