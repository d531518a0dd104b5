"""A real browser for tests of pages: Debian's chromium, headless. A test module imports `browser`, which is a fixture."""

import os
import shutil

import pytest

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
LONG = 60000  # ms: for a reply on a busy machine
needs_browser = pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed (Debian: chromium)")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        sandbox = [] if os.getuid() else ["--no-sandbox"]  # which chromium refuses to root
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield browser
        browser.close()


def open_inside(page, button):
    """Opens the panel Inside of a text by its button; returns its frame, when it shows the text."""
    button.click()
    playwright.expect(page.locator("#inside iframe")).to_be_visible(timeout=LONG)
    frame = page.frame_locator("#inside iframe")
    playwright.expect(frame.locator("#selected")).to_contain_text("Token", timeout=LONG)
    return frame
