"""Headless Chromium, where there is one."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
DESKTOP: dict[str, Any] = {"viewport": {"width": 1180, "height": 760}}
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 780}, "is_mobile": True, "has_touch": True,
    "device_scale_factor": 2,
}  # fmt: skip
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine (Debian: apt install chromium)"
)


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A browser, until the block ends."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


class ChatPage:
    """The chat page in a fresh profile, by what a person sees of it."""

    def __init__(self, browser, url: str, **options: Any):
        self.context = browser.new_context(**(DESKTOP | options))
        self.page = self.context.new_page()
        self.page.set_default_timeout(15_000)
        self.url, self.failures, self.asked = url, [], []
        self.page.on("pageerror", lambda error: self.failures.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(url)

    def button(self, name: str):
        return self.page.get_by_role("button", name=name, exact=True)

    @property
    def box(self):
        return self.page.get_by_label("Message", exact=True)

    def send(self, text: str) -> None:
        self.box.fill(text)
        self.box.press("Enter")

    def ended(self) -> None:
        """Waits until the last answer has come to its end."""
        self.button("Retry").wait_for()

    def written(self, characters: int = 40) -> None:
        """Waits until the last answer has so many."""
        from playwright.sync_api import expect

        last = self.page.locator("li.assistant .body").last
        expect(last).to_have_text(re.compile(f".{{{characters}}}", re.DOTALL), timeout=15_000)

    def answers(self) -> list[str]:
        return self.page.locator("li.assistant .body").all_inner_texts()

    def questions(self) -> list[str]:
        return self.page.locator("li.user .body").all_inner_texts()

    def settings(self, **values: str) -> None:
        """Opens the settings, fills in some by their labels, closes them."""
        self.button("Settings").click()
        for label, value in values.items():
            self.page.get_by_label(label.replace("_", " ")).fill(value)
        self.button("Done").click()
