"""Headless Chromium, its requests and its console."""

import json
import os
import shutil
from contextlib import contextmanager

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

_FLAGS = (
    "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync",
    "disable-background-networking", "disable-component-update", "hide-scrollbars",
)  # fmt: skip


@contextmanager
def chromium(downloads):
    """A browser that saves downloads into a folder.

    Skips the test if there is no browser, except in CI, where there must be one.
    """
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (browser and driver):
        if os.environ.get("CI"):
            pytest.fail("no chromium and chromedriver; expected CI to install them")
        pytest.skip("no chromium and chromedriver here: install them to test the pages")
    options = ChromeOptions()
    options.binary_location = browser
    for flag in _FLAGS:
        options.add_argument(f"--{flag}")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    page = Chrome(options, Service(driver))
    page.set_page_load_timeout(60)
    page.downloads = downloads
    try:
        yield page
    finally:
        page.quit()


def eventually(page, condition, seconds=60):
    """Wait until `condition(page)` holds: a page handles most events after the driver's call.

    Raises:
        TimeoutException: It does not hold in time.
    """
    return WebDriverWait(page, seconds).until(condition)


def requests(page):
    """Addresses that the browser has requested since the last call."""
    events = (json.loads(entry["message"])["message"] for entry in page.get_log("performance"))
    return [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]


def look(page, width, dark=False, height=900):
    """Set the size of the window, in CSS pixels, and the colour scheme."""
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
    )
