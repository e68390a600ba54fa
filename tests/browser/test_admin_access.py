"""Who may see and change what on the admin pages, and how cross-site requests and guessed passwords are refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from gateway.admin.page_request import Page
from gateway.admin.pages import PAGES
from tests.browser.conftest import CONFIG, Client
from tests.farebox_process import FareboxProcess, running_farebox

PASSWORD = "correct horse battery"
# Pages that need no login: those for logging in.
PUBLIC = {("GET", "/login"), ("POST", "/login"), ("GET", "/setup"), ("POST", "/setup")}


def path_of(page: Page) -> str:
    return "/admin" + re.sub(r"\{[a-z]+:path\}", "thing", page.path)


def page_id(page: Page) -> str:
    return f"{page.method} {page.path or '/admin'}"


@pytest.fixture(scope="module")
def admin(guarded: FareboxProcess) -> Client:
    """The first admin, by the one-time link in the log."""
    client = Client(guarded.url)
    match = re.search(r"First admin login, once: \S*(/admin/setup\?token=\S+)", guarded.log)
    assert match, guarded.log
    path, token = match[1], match[1].partition("token=")[2]
    assert client.get(path).status == 200
    form = {"token": token, "name": "ada", "password": PASSWORD, "again": PASSWORD}
    assert client.post("/admin/setup", form | {"again": "something else"}).status == 400
    assert client.post("/admin/setup", form | {"password": "short", "again": "short"}).status == 400
    done = client.post("/admin/setup", form)
    assert (done.status, done.headers["location"]) == (303, "/admin")
    assert client.get(path).status == 403, "the link works once"
    return client


@pytest.fixture(scope="module")
def viewer(guarded: FareboxProcess, admin: Client) -> Client:
    form = {"name": "vic", "password": PASSWORD, "role": "viewer"}
    assert admin.post("/admin/people", form).status == 303
    client = Client(guarded.url)
    assert client.post("/admin/login", {"name": "vic", "password": PASSWORD, "next": "/admin/runs"}).status == 303
    return client


def test_every_page_declares_the_role_it_needs() -> None:
    public = {(page.method, page.path) for page in PAGES if page.required_role == "public"}
    assert public == PUBLIC
    changing = {
        page.required_role for page in PAGES if page.method == "POST" and (page.method, page.path) not in PUBLIC
    }
    assert changing == {"admin", "viewer"}  # viewer: logging out
    assert [page.path for page in PAGES if page.method == "POST" and page.required_role == "viewer"] == ["/logout"]


@pytest.mark.parametrize("page", [page for page in PAGES if page.required_role != "public"], ids=page_id)
def test_anonymous_visitor_is_redirected_to_the_login(guarded: FareboxProcess, page: Page) -> None:
    stranger = Client(guarded.url)
    reply = stranger.get(path_of(page)) if page.method == "GET" else stranger.post(path_of(page), {})
    assert reply.status == 303
    assert reply.headers["location"].startswith("/admin/login")


@pytest.mark.parametrize("page", [page for page in PAGES if page.required_role == "admin"], ids=page_id)
def test_viewer_is_refused_every_change(viewer: Client, page: Page) -> None:
    assert page.method == "POST"
    reply = viewer.post(path_of(page), {"name": "vic", "action": "save"})
    assert reply.status == 403
    assert "may only look" in reply.text


@pytest.mark.parametrize(
    "path", ["", "/runs", "/workflows", "/budgets", "/agents", "/settings", "/keys", "/usage", "/audit", "/health"]
)
def test_viewer_sees_pages_without_their_forms(viewer: Client, path: str) -> None:
    reply = viewer.get(f"/admin{path}")
    assert reply.status == 200
    forms = re.findall(r'<form method="post" action="([^"]+)"', reply.text)
    assert set(forms) <= {"/admin/logout", "/admin/settings/review"}
    if path == "/settings":
        assert reply.text.count(" disabled") >= 40
        assert "See what would change" not in reply.text


@pytest.mark.parametrize(
    "headers",
    [
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"sec_fetch_site": "none"},
        {"sec_fetch_site": "", "origin": "https://evil.example"},
        {"sec_fetch_site": ""},
    ],
    ids=str,
)
def test_cross_site_form_is_refused(admin: Client, headers: dict[str, str]) -> None:
    form = {"name": "intruder", "password": PASSWORD, "role": "admin"}
    assert admin.post("/admin/people", form, **headers).status == 403
    assert "intruder" not in admin.get("/admin/keys").text


def test_form_with_only_a_same_origin_header_is_accepted(guarded: FareboxProcess, admin: Client) -> None:
    form = {"name": "olga", "password": PASSWORD, "role": "viewer"}
    assert admin.post("/admin/people", form, sec_fetch_site="", origin=guarded.url).status == 303


def test_local_mode_refuses_cross_site_proxied_and_rebound_requests(gateway: FareboxProcess) -> None:
    client = Client(gateway.url)
    assert client.get("/admin").status == 200
    assert client.get("/admin", sec_fetch_site="cross-site").status == 303
    assert client.get("/admin", x_forwarded_for="10.0.0.1").status == 303
    assert client.get("/admin", host="rebound.example").status == 303


def test_wrong_logins_are_refused_with_429_after_10_attempts(
    guarded: FareboxProcess, admin: Client, viewer: Client
) -> None:
    client = Client(guarded.url)
    statuses = [client.post("/admin/login", {"name": "mallory", "password": "x"}).status for _ in range(12)]
    assert statuses == [401] * 10 + [429] * 2
    late = client.post("/admin/login", {"name": "mallory", "password": "y"})
    assert (late.status, late.headers["retry-after"]) == (429, "300")
    assert client.post("/admin/login", {"name": "ada", "password": PASSWORD}).status == 303, (
        "another user of the same address may log in"
    )
    assert admin.get("/admin").status == 200, "an open session is not affected"


def test_session_ends_on_logout_and_when_its_user_is_disabled(admin: Client, viewer: Client) -> None:
    cookie = viewer.cookie
    assert viewer.post("/admin/logout", {}).status == 303
    viewer.cookie = cookie
    assert viewer.get("/admin").status == 303, "the session of this cookie has ended"
    assert viewer.post("/admin/login", {"name": "vic", "password": PASSWORD}).status == 303
    assert viewer.get("/admin").status == 200
    assert admin.post("/admin/people/disable", {"name": "vic"}).status == 303
    assert viewer.get("/admin").status == 303, "its user is disabled"
    assert admin.post("/admin/people/disable", {"name": "ada"}).status == 400, "nobody disables themselves"


def test_session_cookie_is_http_only_and_same_site_strict(guarded: FareboxProcess, admin: Client) -> None:
    reply = Client(guarded.url).post("/admin/login", {"name": "ada", "password": PASSWORD})
    cookie, *attributes = reply.headers["set-cookie"].split("; ")
    assert {attribute.lower() for attribute in attributes} >= {"httponly", "samesite=strict", "path=/admin"}
    assert len(cookie.partition("=")[2]) >= 43
    assert admin.cookie.partition("=")[2] not in admin.get("/admin").text


def test_login_redirects_only_to_admin_pages(guarded: FareboxProcess) -> None:
    client = Client(guarded.url)
    for target in ("https://evil.example/admin", "//evil.example/admin", "/admin\\evil", "/v1/models", "javascript:1"):
        page = client.get("/admin/login?next=" + target.replace(":", "%3A").replace("\\", "%5C"))
        assert 'name="next" value="/admin"' in page.text, target


def test_admin_key_gives_programs_access_to_the_pages(guarded: FareboxProcess) -> None:
    program = Client(guarded.url, headers={"authorization": "Bearer a-long-admin-key"})
    assert program.get("/admin").status == 200
    assert program.post("/admin/settings/review", {"orchestration_max_retry_attempts": "3"}).status == 200
    assert Client(guarded.url, headers={"authorization": "Bearer wrong-key-here"}).get("/admin").status == 401


@pytest.mark.parametrize("path", ["/admin", "/admin/login", "/admin/nothing", "/admin/runs"])
def test_every_page_has_a_strict_content_security_policy(gateway: FareboxProcess, path: str) -> None:
    reply = Client(gateway.url).get(path)
    policy = reply.headers["content-security-policy"]
    assert policy.startswith("default-src 'self'")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["cache-control"] == "no-store"
    assert not re.search(r"<script(?! src=)|<style|\sstyle=|\son[a-z]+=|javascript:", reply.text)


def command(
    gateway: FareboxProcess, *arguments: str, standard_input: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The command line, beside the gateway's files."""
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment}
    config = str(gateway.folder / "config.yaml")
    return subprocess.run(
        [sys.executable, "-m", "gateway", "--config", config, *arguments],
        input=standard_input,
        text=True,
        capture_output=True,
        cwd=gateway.folder,
        env=environ,
        timeout=60,
        check=False,
    )


def test_admin_command_sets_a_password_with_and_without_a_running_gateway(tmp_path: Path) -> None:
    environment = {"FAREBOX_ADMIN_KEY": "a-long-admin-key"}
    with running_farebox(tmp_path, CONFIG, environment=environment) as gateway:
        port = str(urlsplit(gateway.url).port)
        elsewhere = "http://127.0.0.1:9"  # the operator's token is for no proxy
        done = command(
            gateway, "admin", "ida", standard_input=PASSWORD + "\n", FAREBOX_SERVER_PORT=port, http_proxy=elsewhere
        )

        assert (done.returncode, done.stdout) == (0, "ida may log in at /admin as admin.\n"), done.stderr
        assert Client(gateway.url).post("/admin/login", {"name": "ida", "password": PASSWORD}).status == 303
        short = command(gateway, "admin", "ida", standard_input="short\n", FAREBOX_SERVER_PORT=port)
        assert (short.returncode, "12 characters" in short.stderr) == (1, True)
        assert gateway.stop() == 0
        done = command(gateway, "admin", "vic", "--role", "viewer", standard_input=PASSWORD + "\n")
        assert done.returncode == 0, done.stderr
        gateway.start()
        assert "First admin login" not in gateway.log.rpartition("Farebox listens")[0].rpartition("Farebox listens")[2]
        assert Client(gateway.url).post("/admin/login", {"name": "vic", "password": PASSWORD}).status == 303


def test_key_is_changed_on_the_keys_page(guarded: FareboxProcess) -> None:
    program = Client(guarded.url, headers={"authorization": "Bearer a-long-admin-key"})
    key = guarded.request(
        "POST", "/api/keys", {"name": "changing", "agent": "ada"}, {"authorization": "Bearer a-long-admin-key"}
    ).json()
    changed = {"id": key["id"], "requests": "20", "window": "day", "concurrency": "2", "step": "nightly", "agent": ""}
    assert program.post("/admin/keys/change", changed).status == 303
    assert "20 requests a day" in program.get("/admin/keys").text
    shown = guarded.get(f"/api/keys/{key['id']}", {"authorization": "Bearer a-long-admin-key"}).json()
    assert shown["limits"] == {"requests": 20, "window": "day", "concurrency": 2}
    assert (shown["step"], shown["agent"]) == ("nightly", "ada"), "what is left empty stays"
    assert program.post("/admin/keys/change", {"id": key["id"], "no_limits": "1"}).status == 303
    assert guarded.get(f"/api/keys/{key['id']}", {"authorization": "Bearer a-long-admin-key"}).json()["limits"] == {}
    assert program.post("/admin/keys/change", {"id": key["id"], "requests": "many"}).status == 400
