"""Templates, and what every page has: navigation, colours, headers that keep foreign code out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

from gateway import __version__
from gateway.admin import drawing, figures
from gateway.admin.figures import path_of
from gateway.admin.static_files import StaticFiles
from gateway.admin.verdict import told
from gateway.decisions import decisions_of

if TYPE_CHECKING:
    from gateway.admin.visit import Visit

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
# What a page may say above itself after a change; the address carries the word, never the sentence.
DONE: Final[Mapping[str, str]] = {
    "saved": "Saved. It counts in this process now, and in every other within two seconds.",
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
            "count": figures.count,
            "tokens": figures.tokens,
            "usd": figures.usd,
            "percent": figures.percent,
            "moment": figures.moment,
            "ago": figures.ago,
            "span": figures.span,
            "at_moment": figures.at_moment,
            "pretty_detail": figures.pretty_detail,
            "decisions": decisions_of,
            "prose": figures.prose,
            "window": figures.window_text,
            "setting_text": figures.setting_text,
            "plain": figures.plain,
        }
        self._environment.tests["saving"] = _is_saving
        self._environment.globals |= {
            "static": static.path,
            "bullet": drawing.bullet,
            "told": told,
            "share_bar": drawing.share_bar,
            "sparkline": drawing.sparkline,
            "line": drawing.line,
            "navigation": _NAVIGATION,
            "version": __version__,
        }
        for name in self._environment.list_templates():
            self._environment.get_template(name)

    def page(self, visit: Visit, template: str, status: int, values: Mapping[str, Any]) -> Response:
        text = self.fragment(visit, f"{template}.html", values)
        return HTMLResponse(text, status)

    def fragment(self, visit: Visit, template: str, values: Mapping[str, Any]) -> str:
        return self._environment.get_template(template).render(**_around(visit), **values)


def _is_saving(actions: str) -> bool:
    """Whether any of these kinds of actions makes a call cheaper; others only say how its budget was kept."""
    return not {"compress", "route", "clamp"}.isdisjoint(actions.split("+"))


def _around(visit: Visit) -> dict[str, Any]:
    """What every template may use."""
    project = None if visit.project == DEFAULT_PROJECT else visit.project

    def url(page: str, name: str = "", **query: str | None) -> str:
        return path_of(page, name, **{"project": project, **query})

    return {
        "visit": visit,
        "url": url,
        "project": project,
        "projects": _projects(visit),
        "now_ms": visit.now_ms,
        "done": DONE.get(visit.param("done"), ""),
        "here": visit.request.url.path.removeprefix("/admin").strip("/").partition("/")[0] or "overview",
    }


def _projects(visit: Visit) -> list[str]:
    """Those that keys and declared workflows name; the one that is looked at is always among them."""
    snapshot = visit.desk.parts.control.snapshot
    named = {key.project for key in snapshot.keys.values()} | {project for project, _ in snapshot.workflows}
    return sorted(named | {visit.project, DEFAULT_PROJECT})
