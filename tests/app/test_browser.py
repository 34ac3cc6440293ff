"""The dashboard in a real Chromium, as an engineer meets it: nothing breaks, nothing is asked of other machines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from moesim.placement import Placement
from moesim.solve import Plan
from moesim.spec import ModelSpec
from moesim.trace import Trace

from .serving import HEARD_MS, ROOT, Visitor, chromium, served, visit

pytest.importorskip("playwright", reason="needs playwright", exc_type=ImportError)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium() is None, reason="needs a Chromium (Debian: apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served([tmp_path_factory.mktemp("data")]) as where:
        yield where


def untroubled(visitor: Visitor) -> None:
    assert visitor.exceptions() == 0
    assert visitor.complaints == []
    assert visitor.foreign == []


def download(visitor: Visitor, name: str, folder: Path) -> Path:
    with visitor.page.expect_download() as waiting:
        visitor.press(name)
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def still(visitor: Visitor, selector: str, number: int) -> list[dict[str, float]]:
    """The boxes of so many marks of a figure, once all are drawn and none moves."""
    marks = visitor.page.locator(selector)
    marks.nth(number - 1).wait_for()
    before: list[dict[str, float]] = []
    while before != (boxes := [mark.bounding_box() for mark in marks.all()]):
        before = boxes
        visitor.page.wait_for_timeout(1000)
    assert len(boxes) == number
    return boxes


def test_from_the_sample_to_the_map_and_back(address: str, tmp_path: Path):
    spec: ModelSpec = Trace.read(ROOT / "traces" / "bundled-moe-eval.parquet", layers=None).spec
    with visit(address) as visitor:
        page = visitor.page
        # the samples are loaded without a click
        visitor.open()
        assert visitor.metric("Model") == "64 experts"
        untroubled(visitor)
        visitor.go("Plan")
        without = visitor.metric("Step time, mean")
        page.get_by_role("spinbutton", name="Deadline (s)").fill("2")
        page.get_by_role("spinbutton", name="Deadline (s)").press("Enter")
        visitor.settle()
        visitor.press("Plan")
        # the press is heard at once; the search may compile kernels first, for minutes and whatever its deadline
        page.wait_for_selector("text=This is what runs without a plan", state="detached", timeout=HEARD_MS)
        page.wait_for_selector("text=Experts to move")
        visitor.settle()
        planned = visitor.metric("Step time, mean")
        assert planned != without
        untroubled(visitor)
        visitor.go("Simulation")
        assert visitor.metric("Step time, mean") == planned
        for detail in ("Links", "Timeline"):
            visitor.choose(detail)
        untroubled(visitor)
        visitor.go("Compare")
        assert visitor.metric("Step time, mean") == planned
        visitor.choose("Take away")
        page.wait_for_selector("text=--init-expert-location experts.json")
        map_file = download(visitor, "Download experts.json for sglang", tmp_path)
        plan_file = download(visitor, "Download the plan (JSON)", tmp_path)
        plan = Plan.read(plan_file)
        assert plan.solver == "moesim"
        assert Placement.read(map_file, "sglang", ranks=32, spec=spec).digest == plan.placement.digest
        untroubled(visitor)
        visitor.go("What if")
        now = visitor.metric("Step time")
        slider = page.get_by_role("slider", name="Bandwidth between nodes (×)")
        slider.focus()
        slider.press("ArrowLeft")
        page.wait_for_function(
            # a slow machine shows how far it is in between, and no key figure
            "before => ![before, undefined].includes("
            "document.querySelector('[data-testid=stMetricValue]')?.innerText.trim())",
            arg=now,
        )
        visitor.settle()
        assert visitor.metric("Step time") != now
        # the knob stands in the link: whoever opens it sees the same number
        page.wait_for_url(re.compile("w_between=0.75"))
        untroubled(visitor)


def test_a_bad_upload_shows_a_clear_error(address: str, tmp_path: Path):
    bad = tmp_path / "broken.parquet"
    bad.write_bytes(b"PAR1 this is no trace")
    with visit(address) as visitor:
        visitor.open()
        visitor.page.get_by_text("Upload a trace or a topology").click()
        visitor.page.locator("input[type=file]").first.set_input_files(bad)
        alert = visitor.page.get_by_role("alert").first
        alert.wait_for()
        assert alert.inner_text().startswith("broken.parquet")
        assert visitor.metric("Model") == "64 experts"
        untroubled(visitor)


@pytest.mark.parametrize("dark", [False, True])
def test_every_page_fits_a_laptop_in_both_themes(address: str, dark: bool):
    with visit(address, dark=dark) as visitor:
        visitor.open()
        for title in ("Inputs", "Plan", "Simulation", "Compare", "What if"):
            visitor.go(title)
            wide = visitor.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert wide <= 0, f"{title} is {wide} pixels wider than the window"
            visitor.page.wait_for_selector(".js-plotly-plot .main-svg")
            paper = visitor.page.evaluate(
                "getComputedStyle(document.querySelector('.js-plotly-plot .main-svg')).backgroundColor"
            )
            assert paper == ("rgb(14, 17, 23)" if dark else "rgb(255, 255, 255)"), title
        untroubled(visitor)


def test_a_click_on_a_plan_shows_it_on_all_pages(address: str):
    with visit(address, size={"width": 1366, "height": 1300}) as visitor:
        page = visitor.page
        visitor.open()
        visitor.metric("Model")
        visitor.go("Compare")
        visitor.press("Add the fast baselines")
        # contiguous stands alone, above all others
        page.wait_for_selector("text=round-robin is fastest")
        visitor.settle()
        visitor.choose("Pareto")
        page.wait_for_selector("text=Step time against expert weights")
        boxes = still(visitor, ".scatterlayer .point", 6)
        highest = min(boxes, key=lambda box: box["y"])
        x, y = highest["x"] + highest["width"] / 2, highest["y"] + highest["height"] / 2
        page.mouse.move(x - 3, y - 3)
        page.mouse.move(x, y)
        page.wait_for_selector(".hoverlayer .hovertext", timeout=HEARD_MS)
        page.mouse.click(x, y)
        page.wait_for_selector("text=contiguous is the plan that all pages show now")
        for title in ("Plan", "Simulation"):
            visitor.go(title)
            assert page.get_by_role("combobox", name="Plan", exact=True).input_value() == "contiguous", title
        untroubled(visitor)
