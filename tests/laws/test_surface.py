"""The surface stays small: ten public names, a cheap import, small modules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import moesim

HEAVY = ("torch", "ortools", "streamlit", "plotly", "networkx", "ray", "transformers", "triton")
MOST_LINES = 400


def test_the_public_names_are_these_sorted_and_complete():
    assert moesim.__all__ == sorted(moesim.__all__)
    assert moesim.__all__ == [
        "Cluster",
        "Costs",
        "ModelSpec",
        "MoesimError",
        "Placement",
        "Plan",
        "Report",
        "Trace",
        "capture",
        "compare",
        "simulate",
        "solve",
    ]


@pytest.mark.parametrize("name", moesim.__all__)
def test_every_public_name_resolves_and_is_documented(name: str):
    thing = getattr(moesim, name)
    assert thing.__doc__
    assert thing.__doc__.strip().splitlines()[0].endswith(".")


@pytest.mark.parametrize("name", ["capture", "simulate", "solve"])
def test_a_room_that_is_a_verb_is_one_thing_however_it_is_imported(name: str):
    code = (
        f"import moesim, pickle, inspect; first = moesim.{name}; import moesim.{name}; "
        f"assert first is moesim.{name} and callable(first) and pickle.loads(pickle.dumps(first)) is first; "
        f"from moesim import {name}; assert {name} is first; from moesim.{name} import {name} as verb; "
        "assert inspect.signature(first) == inspect.signature(verb)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    # the other order: the room first
    subprocess.run([sys.executable, "-c", f"import moesim.{name}, moesim; assert callable(moesim.{name})"], check=True)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = moesim.no_such_name


@pytest.mark.parametrize("statement", ["import moesim", "import moesim.trace, moesim.cluster, moesim.placement"])
def test_importing_does_not_load_heavy_packages(statement: str):
    code = f"import sys; {statement}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_modules_stay_small(root: Path):
    long = {
        str(path.relative_to(root)): lines
        for path in (root / "moesim").rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES
    }
    assert not long, f"split these, one idea each: {long}"
