"""What a person does in a browser, as tests say it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from selenium.common.exceptions import StaleElementReferenceException, WebDriverException
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select

from tests.common.service import RunningService
from tests.common.waiting import until


@dataclass
class Person:
    """Somebody at a browser, before one service."""

    browser: WebDriver
    service: RunningService

    def goes_to(self, path: str) -> None:
        """Types an address."""
        self.browser.get(self.service.base + path)

    def signs_in(self) -> None:
        """With the operator's token, unless that was done."""
        self.goes_to("/")
        if self.finds("#token"):
            self.types("#token", self.service.token)
            self.clicks("button")
            self.sees("#live")
        self.complaints()  # what was said before is another story

    def finds(self, selector: str) -> list[WebElement]:
        """All that matches now."""
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def sees(self, selector: str, text: str = "", *, seconds: float = 30) -> WebElement:
        """The first visible match whose text has `text`, once there is one."""

        def look() -> WebElement | None:
            try:
                shown = (each for each in self.finds(selector) if each.is_displayed())
                return next((each for each in shown if text in each.text), None)
            except WebDriverException:
                return None  # the page renewed itself meanwhile

        try:
            found = until(look, seconds=seconds, what=f"{selector} with {text!r}")
        except AssertionError as late:
            raise AssertionError(f"{late} in: {self.text()[:3000]}") from None
        assert found is not None
        return found

    def sees_none(self, selector: str, *, seconds: float = 30) -> None:
        """Waits until nothing visible matches."""

        def gone() -> bool:
            try:
                return not any(each.is_displayed() for each in self.finds(selector))
            except WebDriverException:
                return False

        until(gone, seconds=seconds, what=f"the end of {selector}")

    def text(self) -> str:
        """All that the page shows."""
        return self.browser.find_element(By.TAG_NAME, "body").text

    def clicks(self, selector: str, text: str = "") -> None:
        """Clicks what is seen, wherever on the page it is."""

        def click() -> bool:
            try:
                found = self.sees(selector, text)
                self.run("arguments[0].scrollIntoView({block: 'center'})", found)
                found.click()
            except WebDriverException:
                return False
            return True

        until(click, seconds=60, what=f"a click on {selector}")

    def presses(self, selector: str, key: str, text: str = "") -> None:
        """Presses a key on what is seen."""

        def press() -> bool:
            try:
                self.sees(selector, text).send_keys(key)
            except StaleElementReferenceException:
                return False  # the page renewed itself meanwhile
            return True

        until(press, what=f"a key on {selector}")

    def types(self, selector: str, text: str) -> None:
        """Writes a text into a field instead of what was there."""
        field = self.sees(selector)
        self.run("arguments[0].scrollIntoView({block: 'center'})", field)
        field.clear()
        field.send_keys(text)

    def chooses(self, selector: str, text: str) -> None:
        """One option of a list."""
        Select(self.sees(selector)).select_by_visible_text(text)

    def run(self, script: str, *given: Any) -> Any:
        """Runs a script, which people do not."""
        return self.browser.execute_script(script, *given)

    def waits(self, condition: Callable[[], Any], what: str, *, seconds: float = 30) -> Any:
        """Until something is so."""
        return until(condition, seconds=seconds, what=what)

    def prefers(self, scheme: str) -> None:
        """`light` or `dark`."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def has_window(self, width: int, height: int = 900) -> None:
        """A window of this many pixels, also narrower than Chromium itself allows."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def complaints(self) -> list[str]:
        """What the browser wrote to its console since last asked: errors, and breaches of the policy."""
        logged: list[dict[str, Any]] = self.browser.get_log("browser")  # type: ignore[no-untyped-call]
        return [entry["message"] for entry in logged if entry["level"] == "SEVERE"]
