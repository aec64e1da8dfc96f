"""The service's pages in a real browser: Debian's Chromium, driven by Playwright and looked over by axe."""

import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

WIDTHS = (1280, 390)
THEMES = ("light", "dark")


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser; skips the test where there is none."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def tab(browser: Browser, base: str, theme: str = "light", width: int = 1280) -> Iterator[Page]:
    """A page of its own; whatever it complains of, a refused script or style among it, fails the test."""
    complaints: list[str] = []
    context = browser.new_context(base_url=base, color_scheme=theme, viewport={"width": width, "height": 900})
    try:
        page = context.new_page()
        page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        yield page
        assert complaints == []
    finally:
        context.close()


def look_over(browser: Browser, base: str, paths: dict[str, str]) -> None:
    """Every page (name -> path) in both themes and widths: nothing runs over the edge, and axe finds no fault.

    Pictures go where CWM_RL_SCREENSHOTS says.
    """
    kept = os.environ.get("CWM_RL_SCREENSHOTS")
    faults = []
    for theme, width in itertools.product(THEMES, WIDTHS):
        with tab(browser, base, theme, width) as page:
            for name, path in paths.items():
                answer = page.goto(path)
                assert answer is not None and answer.status == 200, path
                where = f"{name}, {theme}, {width} px wide"
                over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
                if over:
                    faults.append(f"{where}: {over} px over the edge")
                found = Axe().run(page)
                if found.violations_count:
                    faults.append(f"{where}: {found.generate_report()}")
                if kept:
                    Path(kept).mkdir(parents=True, exist_ok=True)
                    page.screenshot(path=Path(kept) / f"{name}-{theme}-{width}.png", full_page=True)
    assert not faults, "\n".join(faults)
