"""The pictures in docs/images, of a gateway that is at work.

    .venv/bin/python -m tests.browser.screenshots [folder]        (make screenshots)

Needs Chromium. The figures move with the clock; what they are made of is in `scene.py`.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from playwright.sync_api import sync_playwright

from tests.browser.chromium import CHROMIUM
from tests.browser.conftest import Client
from tests.browser.scene import ADMIN_KEY, EVENTFUL_RUN, PERSON, Traffic, eventful_run, running_scene

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

SCREEN: Final = {"width": 1360, "height": 850}
# name: (address, how much of it is shown in pixels; 0 for all)
PAGES: Final = {
    "overview": ("/admin", 0),
    "run": (f"/admin/runs/{EVENTFUL_RUN}", 1080),
    "workflow": ("/admin/workflows/support-triage", 850),
    "budgets": (f"/admin/budgets?workflow=support-triage&run={EVENTFUL_RUN}&step=draft", 850),
    "settings": ("/admin/settings", 850),
    "usage": ("/admin/usage?group_by=workflow&metric=cost_usd", 850),
}
# The run first: one of its calls is still under way then. README shows it in the reader's theme.
PICTURES: Final = (("run", "light"), ("run", "dark"), *((name, "light") for name in PAGES if name != "run"))
_WARM_UP_S: Final = 12


@contextmanager
def visiting(browser: Browser, url: str, theme: str) -> Iterator[Page]:
    """A page of somebody who has logged in."""
    context: BrowserContext = browser.new_context(base_url=url, viewport=SCREEN, color_scheme=theme, locale="en-GB")  # type: ignore[arg-type]
    page = context.new_page()
    page.goto("/admin/login")
    page.get_by_label("Name").fill(PERSON["name"])
    page.get_by_label("Password").fill(PERSON["password"])
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url("**/admin")
    yield page
    context.close()


def shoot(page: Page, path: str, height: int, file: Path) -> None:
    page.goto(path)
    page.evaluate("document.fonts.ready")
    page.wait_for_timeout(200)
    if height:
        page.set_viewport_size({"width": page.viewport_size["width"], "height": height})  # type: ignore[index]
    page.screenshot(path=file, full_page=not height)
    print(f"{file.name:<32} {file.stat().st_size / 1024:6.0f} KB")


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("docs/images")
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as place,
        running_scene(Path(place)) as (gateway, key),
        sync_playwright() as tool,
    ):
        program = Client(gateway.url, headers={"authorization": f"Bearer {ADMIN_KEY}"})
        assert program.post("/admin/people", PERSON).status == 303
        traffic = Traffic(gateway, key)
        traffic.start()
        time.sleep(_WARM_UP_S)
        browser = tool.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--hide-scrollbars"])
        eventful_run(gateway, key)
        for name, theme in PICTURES:
            with visiting(browser, gateway.url, theme) as page:
                shoot(page, *PAGES[name], folder / f"admin-{name}-{theme}.png")
        traffic.stop()
        browser.close()


if __name__ == "__main__":
    main()
