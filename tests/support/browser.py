"""A real Chromium. A test module names this one in `pytest_plugins`."""

import pytest
from playwright.async_api import async_playwright, expect

from support.page_checks import ARGUMENTS, CHROMIUM


class Browser:
    """Pages that remember what went wrong in them."""

    def __init__(self, chromium) -> None:
        self._chromium = chromium
        self.errors: list[str] = []

    async def open(self, url: str, **options):
        context = await self._chromium.new_context(locale="en-GB", **options)
        page = await context.new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._console)
        await page.goto(url)
        return page

    def _console(self, message) -> None:
        # What Chromium itself says of a server that is gone, or of an answer that is no 200; the page handles both.
        if message.type in {"error", "warning"} and not message.text.startswith("Failed to load resource"):
            self.errors.append(message.text)


@pytest.fixture
async def browser():
    """`await browser.open(url, **context options)` → page; no page may have thrown, or complained on the console."""
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        browser = Browser(chromium)
        expect.set_options(timeout=15_000)  # a busy machine
        yield browser
        await chromium.close()
    assert browser.errors == []
