"""What is asked of a page in Chromium, and which Chromium that is."""

import os
import shutil

import pytest
from axe_playwright_python.async_playwright import Axe

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
NEEDS_CHROMIUM = pytest.mark.skipif(
    shutil.which(CHROMIUM) is None and "CI" not in os.environ, reason=f"no {CHROMIUM} (apt-get install chromium)"
)


def heading(page, name: str):
    return page.get_by_role("heading", level=1, name=name, exact=True)


async def favicon(page) -> str:
    return await page.locator("link[rel=icon]").get_attribute("href")


async def assert_accessible(page) -> None:
    """No serious or critical finding of axe, in the colours of the day and of the night."""
    for scheme in ("light", "dark"):
        await page.emulate_media(color_scheme=scheme)
        found = (await Axe().run(page)).response["violations"]
        bad = [(v["id"], [n["html"] for n in v["nodes"]]) for v in found if v["impact"] in {"serious", "critical"}]
        assert bad == [], scheme


async def assert_fits_a_phone(page) -> None:
    before = page.viewport_size
    await page.set_viewport_size({"width": 360, "height": 740})
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert await page.evaluate(wide) == 0, await page.evaluate(
        "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > 361)"
        ".map(e => e.outerHTML.slice(0, 200))"
    )
    await page.set_viewport_size(before)


def region(page, name: str):
    return page.get_by_role("region", name=name, exact=True)
