"""Put the results of studies into their pages: the table between the markers, and the figure as SVG.

``python docs/make_studies.py NAME DIR`` takes the folder that ``moesim sweep docs/studies/NAME.toml -o DIR`` filled.
Figures need playwright and a Chromium; without them the old ones stay.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from moesim.study.sweep import read_study, sweep
from moesim.study_report import cell, study_figures

HERE = Path(__file__).parent / "studies"
BEGIN, END = "<!-- result -->", "<!-- end of result -->"


def main(name: str, folder: Path) -> None:
    """Write the page of one study."""
    study = read_study(HERE / f"{name}.toml")
    found = sweep(study, folder)
    if found.computed:
        print(f"{name}: {found.computed} points were missing and have been run")
    columns = [*study.varied, *found.columns]
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for row in found.rows:
        cells = [cell(column, row.get(column)) for column in columns]
        if row["status"] != "done":
            cells[-1] = row["status"]
        lines.append("| " + " | ".join(cells) + " |")
    page = HERE / f"{name}.md"
    text = page.read_text(encoding="utf-8")
    picture = _picture(name, study_figures(found))
    body = f"{BEGIN}\n\n{picture}" + "\n".join(lines) + f"\n\n{END}"
    page.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: body, text, flags=re.DOTALL), encoding="utf-8")


def _picture(name: str, figures: list[Any]) -> str:
    path = HERE / "figures" / f"{name}.svg"
    chromium = shutil.which("chromium")
    if figures and chromium and importlib.util.find_spec("playwright"):
        from playwright.sync_api import sync_playwright
        from plotly.offline import get_plotlyjs

        path.parent.mkdir(exist_ok=True)
        with sync_playwright() as play:
            browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            tab = browser.new_page()
            tab.set_content(f"<html><body><script>{get_plotlyjs()}</script></body></html>")
            draw = "([figure, size]) => Plotly.toImage(figure, size)"
            url: str = tab.evaluate(
                f"async (text) => ({draw})([JSON.parse(text), {{format: 'svg', width: 820, height: 460}}])",
                figures[0].to_json(),
            )
            browser.close()
        from urllib.parse import unquote

        path.write_text(unquote(url.partition(",")[2]), encoding="utf-8")
    return f"![{name}](figures/{name}.svg)\n\n" if path.is_file() else ""


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
