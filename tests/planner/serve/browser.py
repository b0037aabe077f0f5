"""A headless Chromium, driven by Playwright: whatever the system has, nothing is downloaded."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SCREEN, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 844}


def chromium_path() -> str | None:
    """Where the browser of this machine is; None if it has none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser for as long as the block runs."""
    with sync_playwright() as playwright:
        # Chromium refuses to run as root, as continuous integration does, with its sandbox on.
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """A page with all that its console said and all that it asked for."""

    page: Page
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@contextmanager
def visit(browser: Browser, url: str, **context: object) -> Iterator[Visit]:
    """A page at `url` in a context of its own, once its answer is whole."""
    settings = {"viewport": SCREEN, "accept_downloads": True, **context}
    with browser.new_context(**settings) as new, new.new_page() as page:
        seen = Visit(page)
        page.on("console", lambda message: seen.said.append(message.text))
        page.on("pageerror", lambda error: seen.said.append(str(error)))
        page.on("request", lambda request: seen.asked.append(request.url))
        page.goto(url)
        yield seen
