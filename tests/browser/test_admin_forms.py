"""Forms of the admin pages that cannot be saved: the messages, where they appear, and that the input is kept."""

from __future__ import annotations

import html
import re
from typing import Any

import pytest

from tests.browser.chromium import needs_chromium
from tests.browser.conftest import Client
from tests.browser.test_in_chromium import browser
from tests.farebox_process import FareboxProcess

__all__ = ["browser"]  # a fixture


def fault_beside(page: str, field: str) -> str:
    """The message next to an input, to which the input itself refers."""
    assert re.search(rf'name="{field}"[^>]* aria-invalid="true" aria-describedby="fault-{field}"', page), field
    match = re.search(rf'id="fault-{field}">([^<]+)<', page)
    assert match, field
    return html.unescape(match[1])


def alert_text(page: str) -> str:
    match = re.search(r'role="alert">([^<]+)<', page)
    return html.unescape(match[1]) if match else ""


def field_value(page: str, field: str) -> str:
    match = re.search(rf'name="{field}" value="([^"]*)"', page)
    assert match, field
    return html.unescape(match[1])


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("match", "a b", "matches no name"),
        ("usd", "9100000", "may be at most 9,007,199"),
        ("tokens", "5x", "must be a whole number; given '5x'"),
        ("timezone", "Nowhere/At-all", "Nowhere/At-all"),
    ],
)
def test_budget_fault_is_shown_beside_its_field(client: Client, field: str, text: str, message: str) -> None:
    form = {"scope": "workflow", "match": "faulty", "usd": "1", "window": "day", field: text}
    reply = client.post("/admin/budgets", form)
    assert reply.status == 400
    assert message in fault_beside(reply.text, field)
    assert alert_text(reply.text) == "Nothing was saved: see below."
    assert field_value(reply.text, field) == text
    assert ("<details open>" in reply.text) == (field == "timezone")


def test_several_budget_faults_are_shown_beside_their_own_fields(client: Client) -> None:
    form = {"scope": "workflow", "match": "a b", "tokens": "9007199254740993", "window": "day"}
    reply = client.post("/admin/budgets", form).text
    assert fault_beside(reply, "match").startswith("matches no name")
    assert "9007199254740991" in fault_beside(reply, "tokens")
    assert "tokens" not in fault_beside(reply, "match")


def test_fault_of_the_whole_form_is_shown_above_it(client: Client) -> None:
    reply = client.post("/admin/budgets", {"scope": "workflow", "match": "faulty", "window": "day"})
    assert alert_text(reply.text) == "A budget needs at least one of tokens, usd, requests."


def test_faults_of_keys_and_run_budgets_are_shown_beside_their_fields(client: Client) -> None:
    reply = client.post("/admin/keys", {"name": "faulty", "usd": "-1"})
    assert "must be 0 or more" in fault_beside(reply.text, "usd")
    assert field_value(reply.text, "usd") == "-1"
    reply = client.post("/admin/runs/r-1", {"action": "budget", "tokens": "12x", "usd": ""})
    assert fault_beside(reply.text, "tokens") == "must be a whole number; given '12x'"


def create_budget(client: Client, name: str, **fields: str) -> str:
    """Create a budget, and return the address of the page that edits it."""
    form = {"scope": "agent", "match": name, "window": "day"} | fields
    assert client.post("/admin/budgets", form).status == 303
    row = next(row for row in client.get("/admin/budgets").text.split("<tr>") if f">{name}<" in row)
    match = re.search(r'href="(/admin/budgets\?edit=[^"#]+)', row)
    assert match
    return match[1]


def test_concurrent_edit_of_a_budget_is_refused_with_409(client: Client) -> None:
    page = create_budget(client, "shared-bot", tokens="500")
    form: dict[str, str] = {"scope": "agent", "match": "shared-bot", "window": "day"}
    form |= {name: field_value(client.get(page).text, name) for name in ("id", "seen")}
    assert client.post("/admin/budgets", form | {"tokens": "600"}).status == 303
    late = client.post("/admin/budgets", form | {"tokens": "700"})
    assert (late.status, field_value(late.text, "tokens")) == (409, "700")
    assert alert_text(late.text).startswith("local changed this budget meanwhile")
    assert "600 tokens" in re.sub(r"<[^>]+>", "", late.text)
    again = form | {"seen": field_value(late.text, "seen"), "tokens": "700"}
    assert client.post("/admin/budgets", again).status == 303


def test_edited_budget_stays_in_its_project(client: Client) -> None:
    path = "/admin/budgets?project=team-c"
    form = {"scope": "agent", "match": "bot-of-team-c", "window": "day", "project": "team-c"}
    assert client.post(path, form | {"tokens": "500"}).status == 303
    row = next(row for row in client.get(path).text.split("<tr>") if ">bot-of-team-c<" in row)
    identifier = re.search(r"edit=(budget-[^&#\"]+)", row)
    assert identifier
    edited = client.get(f"{path}&edit={identifier[1]}").text
    edited = edited[edited.index('id="edit"') :]
    sent = {name: field_value(edited, name) for name in ("id", "seen", "match", "project")}
    assert sent["project"] == "team-c"
    assert client.post(path, form | sent | {"tokens": "600"}).status == 303
    assert "only in team-c" in client.get(path).text
    assert "bot-of-team-c" not in client.get("/admin/budgets").text, "it applies to no other project"


def test_concurrent_edit_of_a_declaration_is_refused_with_409(client: Client) -> None:
    path = "/admin/workflows/edited-by-two"
    form = {"action": "save", "seen": field_value(client.get(path).text, "seen")}
    first, second = ({**form, "declaration": f'{{"steps": [{{"id": "{step}"}}]}}'} for step in "ab")
    assert client.post(path, first).status == 303
    late = client.post(path, second)
    assert late.status == 409
    assert "meanwhile" in alert_text(late.text)
    assert "&#34;b&#34;" in late.text
    assert client.post(path, second | {"seen": field_value(late.text, "seen")}).status == 303


def test_forms_keep_the_selected_project(client: Client) -> None:
    for page in ("settings", "keys", "budgets", "audit", "settings/history"):
        reply = client.get(f"/admin/{page}?project=team-b").text
        main = reply[reply.index("<main") :]
        sent = re.findall(r'<form method="post" action="([^"]+)"', main)
        assert all(action.endswith("?project=team-b") for action in sent), sent
        forms = re.findall(r'<form [^>]*method="get".*?</form>', main, re.DOTALL)
        assert all('name="project" value="team-b"' in form for form in forms), page
    key = "orchestration_max_retry_attempts"
    review = client.post("/admin/settings/review?project=team-b", {key: "4"}).text
    assert 'action="/admin/settings" class="project"' in review, "the page of an answer to a form cannot be asked for"
    saved = client.post("/admin/settings?project=team-b", {key: "4", f"was:{key}": "2"})
    assert saved.headers["location"] == "/admin/settings?project=team-b&done=saved"


def test_small_usd_amount_is_edited_without_an_exponent(client: Client) -> None:
    page = client.get(create_budget(client, "small-bot", usd="0.0000001")).text
    assert field_value(page, "usd") == "0.0000001", "1e-07 would not match the field's own pattern"


def test_history_shows_booleans_in_lower_case(client: Client) -> None:
    key = "orchestration_compression_enabled"
    assert client.post("/admin/settings", {key: "true", f"was:{key}": "false"}).status == 303
    for page in ("/admin/settings", "/admin/settings/history", "/admin/audit"):
        reply = client.get(page).text
        assert "true" in reply
        assert not re.search(r">(True|False)<", reply), page


def test_times_show_utc_without_scripts(client: Client) -> None:
    page = client.get("/admin/runs/r-1").text
    assert re.search(r"<time [^>]+>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC</time>", page)
    assert 'times in <span id="zone">UTC</span>' in page


def test_login_form_keeps_the_name_after_a_wrong_password(guarded: FareboxProcess) -> None:
    reply = Client(guarded.url).post("/admin/login", {"name": "lena", "password": "not mine at all"})
    assert 'value="lena"' in reply.text


@needs_chromium
@pytest.mark.browser
def test_form_input_survives_an_expired_session(browser: Any, guarded: FareboxProcess) -> None:
    program = Client(guarded.url, headers={"authorization": "Bearer a-long-admin-key"})
    form = {"name": "otto", "password": "a quiet long password", "role": "admin"}
    assert program.post("/admin/people", form).status == 303
    page = browser.new_page(base_url=guarded.url)
    page.set_default_timeout(8_000)

    def log_in() -> None:
        page.get_by_label("Name").fill("otto")
        page.get_by_label("Password").fill("a quiet long password")
        page.get_by_role("button", name="Log in").click()

    page.goto("/admin/budgets")
    log_in()
    page.wait_for_url("**/admin/budgets")
    page.get_by_label("Whose name matches").fill("typed-*")
    page.locator("#edit [name=tokens]").fill("5000")
    page.context.clear_cookies()
    page.get_by_role("button", name="Make it").click()
    assert page.get_by_role("status").inner_text().startswith("You are not logged in any more, so nothing was changed.")
    log_in()
    page.wait_for_url("**/admin/budgets")
    tokens = page.locator("#edit [name=tokens]")
    while tokens.count() == 0 or tokens.input_value() != "5000":
        page.go_back()
    page.get_by_role("button", name="Make it").click()
    assert "5,000 tokens" in page.locator("tr", has_text="typed-*").inner_text()
    page.close()


@needs_chromium
@pytest.mark.browser
def test_preview_shows_the_fault_of_an_invalid_declaration(browser: Any, gateway: FareboxProcess) -> None:
    from playwright.sync_api import expect

    page = browser.new_page(base_url=gateway.url)
    page.goto("/admin/workflows?name=previewed")
    expect(page.locator("#preview tbody tr")).to_have_count(2)
    page.locator("#declaration").fill('{"steps": [{"id": "a b"}]}')
    expect(page.locator("#preview").get_by_role("alert")).to_contain_text("steps.0.id: must be 1 to 128 letters")
    page.close()


@needs_chromium
@pytest.mark.browser
def test_long_step_name_leaves_room_for_the_timeline(browser: Any, gateway: FareboxProcess) -> None:
    """A step of 128 characters left no room for the bars of the timeline."""
    from tests.farebox_process import tagged

    step = "s" * 128
    assert gateway.chat("hi", tagged("intake", "r-long", step), model="small", max_tokens=20).status == 200
    page = browser.new_page(base_url=gateway.url, viewport={"width": 1280, "height": 900})
    page.goto("/admin/runs/r-long")
    assert page.locator(".lane").first.bounding_box()["width"] > 200
    page.close()
