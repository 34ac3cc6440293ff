"""Make docs/screenshots/*.png from the dashboard on the bundled traces: `python docs/make_screenshots.py`.

Needs the extra `app`, playwright and a Chromium. Also prints how long pages take, for docs/dashboard.md.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.app.serving import Visitor, served, visit  # noqa: E402

OUT = ROOT / "docs" / "screenshots"
PAGES = ("Inputs", "Plan", "Simulation", "Compare", "What if")
LEAST_HEIGHT = 700
DEADLINE_S = 90
SEARCHING_S = 2
"""How long a search goes on after its first better plan until its picture is taken."""


def shoot(visitor: Visitor, name: str) -> None:
    """Write what the browser shows."""
    if name != "plan-search":
        idle(visitor)
        tall(visitor)
    visitor.page.screenshot(path=OUT / f"{name}.png")
    print(f"wrote {name}.png, {(OUT / f'{name}.png').stat().st_size / 1e3:.0f} kB")


def idle(visitor: Visitor) -> None:
    """Wait until nothing is computed and all is drawn."""
    visitor.page.wait_for_timeout(1500)
    visitor.page.wait_for_selector("[data-testid='stProgress']", state="detached")
    visitor.settle()


def tall(visitor: Visitor) -> None:
    """Make the window as tall as the page."""
    visitor.page.set_viewport_size({"width": 1366, "height": LEAST_HEIGHT})
    visitor.page.wait_for_timeout(300)
    height = visitor.page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
    visitor.page.set_viewport_size({"width": 1366, "height": height})
    visitor.page.wait_for_timeout(600)


def plan(visitor: Visitor) -> None:
    """Search a plan, and catch the search half way."""
    visitor.go("Plan")
    visitor.page.get_by_role("spinbutton", name="Deadline (s)").fill(str(DEADLINE_S))
    visitor.page.get_by_role("spinbutton", name="Deadline (s)").press("Enter")
    visitor.settle()
    visitor.page.set_viewport_size({"width": 1366, "height": 760})
    visitor.press("Plan")
    visitor.page.wait_for_selector("text=Stop, keep the best so far")
    # the first plan, and a better one
    visitor.page.wait_for_selector("[data-testid='stMetricDelta']")
    visitor.page.wait_for_timeout(SEARCHING_S * 1000)
    shoot(visitor, "plan-search")
    visitor.page.wait_for_selector("text=Experts to move", timeout=DEADLINE_S * 10_000)
    visitor.settle()


def main() -> None:
    """Make them all."""
    OUT.mkdir(exist_ok=True)
    began = time.monotonic()
    with served() as address, visit(address) as visitor:
        visitor.open()
        visitor.metric("Model")
        visitor.settle()
        print(f"first page after {time.monotonic() - began:.1f} s, server and browser started")
        shoot(visitor, "inputs")
        visitor.choose("Domains")
        shoot(visitor, "inputs-domains")
        visitor.choose("Skew")
        plan(visitor)
        shoot(visitor, "plan")
        visitor.choose("If a part fails")
        shoot(visitor, "plan-failures")
        visitor.choose("Before and after")
        visitor.go("Compare")
        visitor.press("Add the fast baselines")
        visitor.page.wait_for_timeout(1500)
        visitor.page.wait_for_selector("text=It goes on while you look around", state="detached", timeout=300_000)
        visitor.settle()
        visitor.choose("Step time")
        shoot(visitor, "compare")
        visitor.choose("Pareto")
        shoot(visitor, "compare-pareto")
        visitor.choose("Spread")
        shoot(visitor, "compare-spread")
        visitor.choose("Expert diff")
        shoot(visitor, "compare-diff")
        visitor.choose("Take away")
        shoot(visitor, "compare-take-away")
        visitor.go("Simulation")
        visitor.choose("Links")
        shoot(visitor, "simulation")
        visitor.choose("Timeline")
        shoot(visitor, "simulation-timeline")
        visitor.go("What if")
        slider = visitor.page.get_by_role("slider", name="Bandwidth between nodes (×)")
        slider.focus()
        for _ in range(2):
            slider.press("ArrowRight")
            visitor.settle()
        visitor.page.wait_for_timeout(2500)
        visitor.settle()
        shoot(visitor, "what-if")
        for title in PAGES:
            start = time.monotonic()
            visitor.go(title)
            print(f"switch to {title}: {time.monotonic() - start:.2f} s")
        link = visitor.page.url
        print(f"link: {link.removeprefix(address)}")
        assert not visitor.foreign, visitor.foreign
        assert not visitor.complaints, visitor.complaints
    with served() as address, visit(address, dark=True) as visitor:
        visitor.open("simulation")
        visitor.choose("Load")
        shoot(visitor, "simulation-dark")
    total = sum(path.stat().st_size for path in OUT.glob("*.png"))
    print(f"{total / 1e6:.2f} MB in all")


if __name__ == "__main__":
    main()
