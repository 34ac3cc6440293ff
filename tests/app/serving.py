"""A served dashboard and a real browser before it, for the tests and for the screenshots of the docs."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--no-first-run", "--disable-dev-shm-usage")  # fmt: skip
LAPTOP = {"width": 1366, "height": 768}
HEARD_MS = 120_000
"""How long a press may go unanswered. Nothing is computed until then, so what takes longer was not heard."""
PATIENCE_S = 600.0
"""How long a result may take: as long as kernels compile, with none on disk and other tests on the same cores."""


def chromium() -> str | None:
    """Where a Chromium is, if there is one."""
    return next((path for path in CHROMIUM if Path(path).is_file()), None)


@contextmanager
def served(folders: Sequence[Path] = ()) -> Iterator[str]:
    """Start the dashboard with the verb of the command line and yield its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = [part for folder in folders for part in ("--data", str(folder))]
    command = [sys.executable, "-m", "moesim", "app", "--port", str(port), "--no-browser", *data]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + HEARD_MS / 1e3
        while True:
            try:
                with urllib.request.urlopen(f"{address}/_stcore/health", timeout=2) as answer:
                    if answer.status == 200:
                        break
            except OSError:
                pass
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                said = process.stderr.read().decode() if process.stderr else ""
                raise RuntimeError(f"the dashboard did not start: {said[-2000:]}")
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stderr:
            process.stderr.close()


class Visitor:
    """A browser tab that remembers every complaint of the console and every address that was asked for."""

    def __init__(self, page: Any, address: str) -> None:
        self.page, self.address = page, address
        self.complaints: list[str] = []
        self.asked: set[str] = set()
        page.set_default_timeout(PATIENCE_S * 1e3)
        page.on("console", lambda line: self.complaints.append(line.text) if line.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.asked.add(request.url))
        page.on("websocket", lambda socket: self.asked.add(socket.url))

    @property
    def foreign(self) -> list[str]:
        """Addresses outside this machine that were asked for."""
        host = self.address.removeprefix("http://")
        known = re.compile(rf"(https?|wss?)://{re.escape(host)}(/|$)|data:|blob:|about:")
        return sorted(url for url in self.asked if not known.match(url))

    def open(self, path: str = "") -> None:
        """Open an address and wait until it is drawn."""
        self.page.goto(f"{self.address}/{path}")
        self.settle()

    def settle(self) -> None:
        """Wait until the script has run and figures are drawn."""
        page = self.page
        page.wait_for_selector("[data-testid='stApp'][data-test-script-state='notRunning']")
        page.wait_for_timeout(150)
        page.wait_for_selector("[data-testid='stApp'][data-test-script-state='notRunning']")
        page.wait_for_function(
            "[...document.querySelectorAll('[data-testid=stPlotlyChart]')]"
            ".every(one => one.querySelector('.main-svg') || one.offsetParent === null)"
        )

    def go(self, title: str) -> None:
        """Switch to a page by the navigation."""
        self.page.get_by_role("link", name=title, exact=True).first.click()
        self.page.wait_for_selector(f"h1:has-text('{title}')")
        self.settle()

    def choose(self, name: str) -> None:
        """Choose one of the row of details."""
        self.page.locator("[data-testid='stButtonGroup']").get_by_text(name, exact=True).first.click()
        self.settle()

    def press(self, name: str) -> None:
        """Press a button."""
        self.page.get_by_role("button", name=name, exact=True).first.click()

    def metric(self, label: str) -> str:
        """The value of a key figure."""
        card = self.page.locator("[data-testid='stMetric']", has_text=label).first
        return card.locator("[data-testid='stMetricValue']").inner_text()

    def exceptions(self) -> int:
        """How many exception boxes the page shows."""
        return self.page.locator("[data-testid='stException']").count()


@contextmanager
def visit(address: str, *, dark: bool = False, size: dict[str, int] | None = None) -> Iterator[Visitor]:
    """Open a browser before the dashboard."""
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        try:
            context = browser.new_context(
                viewport=size or LAPTOP, color_scheme="dark" if dark else "light", accept_downloads=True
            )
            visitor = Visitor(context.new_page(), address)
            try:
                yield visitor
            except Exception as error:
                with suppress(Error):
                    error.add_note(f"the page shows:\n{visitor.page.locator('body').inner_text(timeout=HEARD_MS)}")
                raise
        finally:
            browser.close()
