"""The admin pages in a real browser: no error on any page, each form used, live rows, filters, themes, keyboard, phones."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser.chromium import CHROMIUM, needs_chromium
from tests.browser.conftest import Client
from tests.farebox_process import FareboxProcess, tagged

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PAGES = (
    "",
    "/runs",
    "/runs/r-1",
    "/workflows",
    "/workflows/intake",
    "/budgets",
    "/budgets?run=r-1&step=draft",
    "/agents",
    "/agents/bot-1",
    "/settings",
    "/settings/history",
    "/keys",
    "/usage",
    "/usage?group_by=day&metric=cost_usd",
    "/audit",
    "/health?check=drift",
)

pytestmark = [
    pytest.mark.browser,
    needs_chromium,
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def page(browser: Browser, gateway: FareboxProcess) -> Iterator[Page]:
    """A page that fails the test for anything its console says."""
    context = browser.new_context(base_url=gateway.url, viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    opened.set_default_timeout(8_000)
    console_messages: list[str] = []
    opened.on("console", lambda message: console_messages.append(message.text))
    opened.on("pageerror", lambda error: console_messages.append(str(error)))
    yield opened
    context.close()
    assert console_messages == []


@pytest.mark.parametrize("path", PAGES)
def test_every_page_loads_without_console_messages(page: Page, path: str) -> None:
    answer = page.goto(f"/admin{path}")
    assert answer is not None
    assert answer.status == 200
    assert page.locator("h1").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page is wider than the window"


@pytest.mark.parametrize("path", PAGES)
def test_every_page_fits_on_a_phone(browser: Browser, gateway: FareboxProcess, path: str) -> None:
    context = browser.new_context(base_url=gateway.url, viewport={"width": 375, "height": 700})
    page = context.new_page()
    page.goto(f"/admin{path}")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page is wider than the phone"
    context.close()


@pytest.mark.parametrize("width", [375, 1280])
@pytest.mark.parametrize("path", ["", "/usage", "/workflows", "/runs"])
def test_longest_name_does_not_widen_a_page(browser: Browser, gateway: FareboxProcess, path: str, width: int) -> None:
    longest = "w" * 128
    assert gateway.chat("hi", tagged(longest, longest, longest), model="small", max_tokens=20).status == 200
    context = browser.new_context(base_url=gateway.url, viewport={"width": width, "height": 700})
    page = context.new_page()
    page.goto(f"/admin{path}")
    assert longest in page.content()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page is wider than the window"
    context.close()


@pytest.mark.parametrize("path", PAGES)
def test_every_page_can_be_read_without_scripts(browser: Browser, gateway: FareboxProcess, path: str) -> None:
    context = browser.new_context(base_url=gateway.url, java_script_enabled=False)
    page = context.new_page()
    page.goto(f"/admin{path}")
    assert page.locator("main").inner_text().strip()
    for link in ("Runs", "Settings"):
        assert page.get_by_role("link", name=link, exact=True).first.is_visible()
    context.close()


def test_live_rows_update_while_calls_are_made(page: Page, gateway: FareboxProcess) -> None:
    from playwright.sync_api import expect

    page.goto("/admin/runs?workflow=live")
    expect(page.locator("[data-live-state]")).to_be_visible()
    assert page.locator("tr[id^=run-]").count() == 0
    for at in (1, 2):
        assert gateway.chat("hi", tagged("live", "r-live", "s"), model="small", max_tokens=10).status == 200
        row = page.locator("#run-r-live")
        expect(row.locator("td.n").nth(1)).to_have_text(str(at), timeout=8_000)
    expect(row).to_have_class("moved")
    page.reload()
    assert page.url.endswith("?workflow=live"), "filters survive a reload"
    assert page.locator("input[name=workflow]").input_value() == "live"


def test_workflow_budget_updates_on_each_of_its_run_rows(page: Page, gateway: FareboxProcess) -> None:
    from playwright.sync_api import expect

    page.goto("/admin/runs?workflow=intake")
    expect(page.locator("[data-live-state]")).to_be_visible()
    row = page.locator("#run-r-1")
    bar, link = row.locator("td a.beneath").first, row.locator("td a").first
    before = bar.get_attribute("title")
    assert re.fullmatch(r"Workflow intake: today [\d,]+ of 100,000 tokens", before or "")
    link.focus()
    tight = row.locator(".tight").text_content()
    assert gateway.chat("word " * 400, tagged("intake", "r-2", "check"), model="small", max_tokens=10).status == 200
    expect(bar).not_to_have_attribute("title", before or "", timeout=8_000)
    expect(link).to_be_focused()
    assert row.locator(".tight").text_content() != tight, "the share that phones show changes too"
    assert row.get_attribute("class") is None, "its own figures did not change"
    expect(page.locator("#run-r-2")).to_have_class("moved")
    assert "project default, this month" in page.locator("#of-project").inner_text()


def test_filters_are_kept_in_the_url(page: Page) -> None:
    page.goto("/admin/runs")
    page.get_by_label("Workflow").fill("triage")
    page.get_by_role("button", name="Filter").click()
    page.wait_for_url("**/admin/runs?workflow=triage")
    assert page.locator("tr[id^=run-]").count() == 1
    page.get_by_label("State").select_option("active")
    page.wait_for_url("**/admin/runs?workflow=triage&state=active")


def test_settings_are_changed_reviewed_saved_and_reverted(page: Page) -> None:
    page.goto("/admin/settings")
    page.get_by_label("max retry attempts").fill("4")
    page.get_by_label("compression enabled").check()
    page.get_by_label("compression for send").select_option("truncate")
    page.get_by_role("button", name="See what would change").click()
    assert page.locator("td.new").all_inner_texts() == ["truncate", "true", "4"]
    page.get_by_role("button", name="Save 3 changes").click()
    assert "Saved." in page.get_by_role("status").inner_text()
    assert page.get_by_label("max retry attempts").input_value() == "4"
    for _ in range(3):
        page.goto("/admin/settings/history")
        page.locator("tr", has=page.locator("td.old")).nth(2).get_by_role("button", name="Take back").click()
    page.goto("/admin/settings")
    assert page.get_by_label("max retry attempts").input_value() == "2"
    assert not page.get_by_label("compression enabled").is_checked()


def test_run_is_paused_resumed_and_given_a_budget(page: Page) -> None:
    page.goto("/admin/runs/r-3")
    page.get_by_role("button", name="Pause").click()
    assert page.locator(".title .state").inner_text() == "paused"
    page.get_by_role("button", name="Resume").click()
    assert page.locator(".title .state").inner_text() == "active"
    page.locator("input[name=tokens]").fill("12,000")
    page.get_by_role("button", name="Set budget").click()
    assert "of 12,000" in page.locator(".figure").first.inner_text()
    page.on("dialog", lambda dialog: dialog.dismiss())
    page.get_by_role("button", name="Cancel").click()
    assert page.locator(".title .state").inner_text() == "active", "a dismissed confirmation cancels nothing"
    page.locator("details").first.click()
    assert page.get_by_text("held → settled").first.is_visible()


def test_timeline_bar_opens_its_call(page: Page) -> None:
    page.goto("/admin/runs/r-1")
    page.locator(".lane a").first.click()
    page.locator("li.call:target details[open]").wait_for()
    page.reload()
    page.locator("li.call:target details[open]").wait_for()  # the URL names the call


def test_review_button_appears_only_after_an_edit(page: Page) -> None:
    page.goto("/admin/settings")
    way_on = page.get_by_role("button", name="See what would change")
    assert not way_on.is_visible()
    page.get_by_label("max retry attempts").fill("7")
    assert way_on.is_visible()
    assert "1 edited" in page.locator(".bottom").inner_text()
    page.get_by_label("max retry attempts").fill("2")
    assert not way_on.is_visible()


def test_chart_shows_the_day_under_the_pointer(page: Page) -> None:
    page.goto("/admin/usage?group_by=workflow")
    parts = page.locator(".parts li")
    assert {"intake", "triage"} <= {text.split()[0] for text in parts.all_inner_texts()}
    whole = parts.first.inner_text()
    assert whole.startswith("together")
    page.locator(".chart .u-over").hover(position={"x": 200, "y": 60})
    assert not parts.first.inner_text().startswith("together")


def test_budget_is_created_changed_and_deleted(page: Page) -> None:
    page.goto("/admin/budgets")
    page.get_by_label("Whose name matches").fill("nightly-*")
    page.locator("input[name=tokens]").fill("5000")
    page.get_by_role("button", name="Make it").click()
    row = page.locator("tr", has_text="nightly-*")
    assert "5,000 tokens" in row.inner_text()
    row.get_by_role("link", name="Edit").click()
    page.locator("input[name=tokens]").fill("6000")
    page.get_by_role("button", name="Save").click()
    assert "6,000 tokens" in page.locator("tr", has_text="nightly-*").inner_text()
    page.on("dialog", lambda dialog: dialog.accept())
    page.locator("tr", has_text="nightly-*").get_by_role("button", name="Delete").click()
    assert page.locator("tr", has_text="nightly-*").count() == 0


def test_declaration_is_previewed_while_typing(page: Page) -> None:
    from playwright.sync_api import expect

    page.goto("/admin/workflows?name=typed")
    page.locator("#declaration").fill(
        '{"steps": [{"id": "one", "intent": "summarize"}, {"id": "two", "intent": "send"}]}'
    )
    expect(page.locator("#preview tbody tr")).to_have_count(2)
    assert page.locator("#preview th.n").all_inner_texts() == ["equal", "proportional", "adaptive", "priority"]
    page.get_by_role("button", name="Save").click()
    page.wait_for_url("**/admin/workflows/typed?done=saved")
    page.get_by_role("button", name="Only observe").click()
    assert page.locator(".title .state").inner_text() == "observe"


def test_agent_score_is_set(page: Page) -> None:
    page.goto("/admin/agents/bot-0")
    page.get_by_label("Creation").fill("2")
    page.get_by_label("Execution").fill("8")
    page.get_by_label("Why").fill("measured elsewhere")
    page.get_by_role("button", name="Set").click()
    assert page.locator(".big").first.inner_text() == "6.20"
    assert "measured elsewhere" in page.locator("main").inner_text()


def test_usage_is_filtered_and_downloaded(page: Page) -> None:
    page.goto("/admin/usage")
    assert page.locator(".chart canvas").count() == 1
    page.locator("[name=metric]").select_option("cost_usd")
    page.wait_for_url(re.compile("metric=cost_usd"))
    page.locator("[name=group_by]").select_option("step")
    page.wait_for_url(re.compile("group_by=step"))
    page.get_by_role("link", name="draft", exact=True).click()
    page.wait_for_url(re.compile("step=draft"))
    assert page.locator("[name=step]").input_value() == "draft"
    assert page.locator("table.usage tbody tr").count() >= 1
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV").click()
    assert download.value.suggested_filename.endswith(".csv")


def test_theme_follows_the_system_until_one_is_chosen(browser: Browser, gateway: FareboxProcess) -> None:
    context = browser.new_context(base_url=gateway.url, color_scheme="dark")
    page = context.new_page()

    def paper() -> str:
        return str(page.evaluate("getComputedStyle(document.body.parentElement).backgroundColor"))

    page.goto("/admin")
    dark = paper()
    page.get_by_role("button", name="Light").click()
    light = paper()
    assert dark != light
    page.goto("/admin/usage")
    assert paper() == light, "the choice stays"
    context.close()


def test_current_page_is_in_view_in_the_navigation_row_of_a_phone(browser: Browser, gateway: FareboxProcess) -> None:
    context = browser.new_context(base_url=gateway.url, viewport={"width": 390, "height": 844})
    page = context.new_page()
    page.goto("/admin/health")
    left, right = page.evaluate(
        "(({left, right}) => [left, right])(document.querySelector('.side [aria-current]').getBoundingClientRect())"
    )
    assert left >= 0
    assert right <= 390
    assert page.evaluate("document.querySelector('.side nav').scrollLeft") > 0
    context.close()


def test_runs_page_is_usable_by_keyboard(page: Page) -> None:
    page.goto("/admin/runs")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.name") == "workflow"
    page.keyboard.type("intake")
    page.keyboard.press("Enter")
    page.wait_for_url("**/admin/runs?workflow=intake")


def test_login_sets_the_session_cookie_and_logout_removes_it(browser: Browser, guarded: FareboxProcess) -> None:
    program = Client(guarded.url, headers={"authorization": "Bearer a-long-admin-key"})
    form = {"name": "lena", "password": "a quiet long password", "role": "viewer"}
    assert program.post("/admin/people", form).status == 303
    context = browser.new_context(base_url=guarded.url)
    page = context.new_page()
    page.goto("/admin/audit")
    page.get_by_label("Name").fill("lena")
    page.get_by_label("Password").fill("a wrong one of mine")
    page.get_by_role("button", name="Log in").click()
    assert "wrong" in page.get_by_role("alert").inner_text()
    page.get_by_label("Name").fill("lena")
    page.get_by_label("Password").fill("a quiet long password")
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url("**/admin/audit")
    (cookie,) = context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/admin")
    page.goto("/admin/runs")
    assert page.get_by_role("button", name="Log out").is_visible()
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url("**/admin/login")
    assert context.cookies() == []
    context.close()


def test_first_key_leads_to_setting_a_password(browser: Browser, tmp_path: Path) -> None:
    """Once there is a key the pages ask for a login, so the page leads to setting a password."""
    from tests.browser.conftest import CONFIG
    from tests.farebox_process import running_farebox

    with running_farebox(tmp_path, CONFIG) as fresh:
        page = browser.new_page(base_url=fresh.url)
        page.goto("/admin/keys")
        page.locator("form[action='/admin/keys']").get_by_label("Name").fill("first")
        page.get_by_role("button", name="Make it").click()
        assert page.locator(".secret").inner_text().startswith("fb_")
        page.get_by_role("link", name="Set your password").click()
        page.get_by_label("Name").fill("ada")
        page.get_by_label("Password, at least").fill("a quiet long password")
        page.get_by_label("The same again").fill("a quiet long password")
        page.get_by_role("button", name="Set it, and log in").click()
        page.wait_for_url("**/admin")
        assert "ada" in page.locator(".who").inner_text()
        page.close()
