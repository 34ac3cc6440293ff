"""The examples of docs/topologies.md are files that moesim reads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from moesim.cluster import Cluster
from moesim.cluster.formats import TOPOLOGY_EXPORTS, TOPOLOGY_FORMATS
from moesim.cluster.presets import preset_names

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "topologies.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize(
    ("example", "ranks"), list(zip(EXAMPLES, [32, 128, 28, 144, 8, 4], strict=True)), ids=lambda v: str(v)[:12]
)
def test_every_example_is_read(example: str, ranks: int, tmp_path: Path) -> None:
    path = tmp_path / "example.toml"
    path.write_text(example, encoding="utf-8")
    assert Cluster.read(path).ranks == ranks


def test_the_python_examples_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    names: dict[str, Any] = {}
    for example in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(example, names)
    assert names["faster"].ranks == 24
    assert names["sixteen"].ranks == 16
    assert names["node"].ranks == names["fabric"].ranks == 8


def test_every_format_is_on_the_page() -> None:
    for name in [*TOPOLOGY_FORMATS.names(), *TOPOLOGY_EXPORTS.names()]:
        assert f"`{name}`" in PAGE or f'`"{name}"`' in PAGE, name


@pytest.mark.parametrize("name", preset_names())
def test_the_table_of_presets_is_right(name: str) -> None:
    summary = Cluster.preset(name).describe()
    cells = [cell.strip() for cell in re.search(rf"\| `{name}` \|(.*)\|", PAGE)[1].split("|")]  # type: ignore[index]
    assert int(cells[1]) == summary["ranks"]
    assert float(cells[2].removesuffix(" GB/s").replace(",", "")) == pytest.approx(summary["bisection_bandwidth"] / 1e9)
