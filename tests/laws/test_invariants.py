"""The page of laws names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "invariants.md"
NAMED = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE.read_text(encoding="utf-8"))


def test_laws_are_numbered_without_gaps():
    numbers = [int(n) for n in re.findall(r"^\| (\d+) \|", PAGE.read_text(encoding="utf-8"), re.M)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= 15


@pytest.mark.parametrize(("file", "test"), sorted(set(NAMED)))
def test_every_law_has_its_test(root: Path, file: str, test: str):
    source = (root / file).read_text(encoding="utf-8")
    assert re.search(rf"def {test or 'test_'}", source), f"{file} has no {test}"
