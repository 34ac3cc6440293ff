"""Notes of the dashboard: each once, those of some plans under their names."""

from __future__ import annotations

from types import ModuleType

import pytest

from .conftest import APP


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(APP))
    import dash_notes

    return dash_notes


def test_what_all_plans_share_is_said_once(notes: ModuleType):
    said = notes.of_plans({"eplb": ["roofline", "swapped 3"], "lpt": ["roofline"], "moesim": ["roofline", "cut"]})
    assert said == ["roofline", "eplb: swapped 3", "moesim: cut"]


def test_lines_that_differ_only_in_numbers_are_one(notes: ModuleType):
    lines = ["resampled: 12 tokens", "roofline", "resampled: 1,340 tokens", "resampled: 7 tokens", "roofline"]
    assert notes.merged(lines) == ["resampled: 12 tokens (and 2 more with other numbers)", "roofline"]
    assert notes.merged([]) == []
