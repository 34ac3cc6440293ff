"""For every format and any placement: what is read is what was written; for any damage: a line, no traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moesim.base.errors import MoesimError
from moesim.placement import PLACEMENT_FORMATS, Placement, fill_empty
from moesim.placement.export import export
from moesim.placement.formats.schedule import read_schedule, write_schedule
from moesim.placement.rounds import schedule
from moesim.spec import ModelSpec

from ..worlds import random_placement

FUZZ = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ENDING = {"eplb": "npz"}
TEXT = [name for name in PLACEMENT_FORMATS.names() if name != "eplb"]


@st.composite
def placements(draw: st.DrawFn) -> tuple[Placement, ModelSpec]:
    ranks = draw(st.integers(1, 5))
    experts = draw(st.integers(1, 12))
    slots = draw(st.integers(-(-experts // ranks), experts))
    layer_ids = draw(st.sets(st.integers(0, 6), min_size=1, max_size=4).map(sorted))
    hidden_layers = layer_ids[-1] + draw(st.integers(1, 2))
    spec = ModelSpec("any", tuple(layer_ids), hidden_layers, experts, top_k=1, hidden=8, intermediate=8)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    placement = random_placement(rng, len(layer_ids), ranks, slots, experts)
    return fill_empty(placement, rng.random((len(layer_ids), experts))).for_model(spec), spec


@pytest.mark.parametrize("name", PLACEMENT_FORMATS.names())
@given(case=placements())
@FUZZ
def test_read_of_write(name: str, case: tuple[Placement, ModelSpec], tmp_path: Path) -> None:
    placement, spec = case
    path = tmp_path / f"experts.{ENDING.get(name, 'json')}"
    export(placement, path, name) if placement.ranks > 1 else placement.write(path, format=name)
    assert Placement.read(path, format=name, ranks=placement.ranks, spec=spec) == placement
    assert Placement.read(path, ranks=placement.ranks, spec=spec) == placement


@given(data=st.data())
@FUZZ
def test_read_of_write_of_a_migration(data: st.DataObject, tmp_path: Path) -> None:
    running, _ = data.draw(placements())
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    planned = random_placement(rng, running.layers, running.ranks, running.slots_per_rank, running.num_experts)
    moves = schedule(running.experts, planned, staging=data.draw(st.sampled_from([None, 1])))
    write_schedule(moves, tmp_path / "m.json")
    read = read_schedule(tmp_path / "m.json")
    assert (read.layers, read.ranks, read.slots) == (moves.layers, moves.ranks, moves.slots)
    for column in ("commit", "round", "layer", "expert", "source", "target", "slot"):
        assert np.array_equal(getattr(read, column), getattr(moves, column))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**30) | st.floats() | st.text(max_size=4)
    | st.sampled_from(["0", "1", "١", "1" * 30, "-1", "num_slots"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("01ab"), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def change_one(data: Any, draw: Any) -> Any:
    """Return the data with one entry anywhere in it replaced, removed or added."""
    if isinstance(data, dict) and data and draw(st.integers(0, 3)):
        key = draw(st.sampled_from(sorted(data, key=str)))
        return data | {key: change_one(data[key], draw)}
    if isinstance(data, list) and data and draw(st.integers(0, 3)):
        at = draw(st.integers(0, len(data) - 1))
        return [*data[:at], change_one(data[at], draw), *data[at + 1 :]]
    if isinstance(data, dict) and draw(st.booleans()):
        return {key: value for key, value in data.items() if key != draw(st.sampled_from([*data, None]))} | draw(
            st.dictionaries(st.text(max_size=3), values, max_size=1)
        )
    if isinstance(data, list) and draw(st.booleans()):
        return [*data[1:], *draw(st.lists(values, max_size=1))]
    return draw(values)


def says_so_in_one_line(read: Any) -> None:
    problem = ""
    try:
        read()
    except MoesimError as error:
        problem = str(error)
    assert "\n" not in problem


@pytest.mark.parametrize("name", [name for name in TEXT if name not in ("csv", "trtllm")])
@given(case=placements(), draw=st.data())
@FUZZ
def test_changed_json(name: str, case: tuple[Placement, ModelSpec], draw: st.DataObject, tmp_path: Path) -> None:
    placement, spec = case
    path = tmp_path / "experts.json"
    placement.write(path, format=name)
    path.write_text(json.dumps(change_one(json.loads(path.read_text()), draw.draw)))
    for format in (name, None):
        says_so_in_one_line(lambda format=format: Placement.read(path, format, ranks=placement.ranks, spec=spec))
        says_so_in_one_line(lambda format=format: Placement.read(path, format))


@given(case=placements(), draw=st.data())
@FUZZ
def test_changed_yaml(case: tuple[Placement, ModelSpec], draw: st.DataObject, tmp_path: Path) -> None:
    placement, spec = case
    path = tmp_path / "experts.yaml"
    placement.write(path, format="trtllm")
    data = change_one(yaml.safe_load(path.read_text()), draw.draw)
    path.write_text(yaml.safe_dump(data, allow_unicode=True), encoding="utf-8")
    says_so_in_one_line(lambda: Placement.read(path, "trtllm", ranks=placement.ranks, spec=spec))
    says_so_in_one_line(lambda: Placement.read(path, "trtllm"))


@pytest.mark.parametrize("name", TEXT)
@given(case=placements(), cut=st.floats(0, 1), insert=st.text("[]{}:,-&*!<|>%@'\"#\n\t 019x\0\x85\u2028é", max_size=6))
@FUZZ
def test_changed_text(
    name: str, case: tuple[Placement, ModelSpec], cut: float, insert: str, tmp_path: Path
) -> None:  # fmt: skip
    placement, spec = case
    path = tmp_path / "experts.json"
    placement.write(path, format=name)
    text = path.read_text()
    at = int(cut * len(text))
    path.write_text(text[:at] + insert + text[at:], encoding="utf-8")
    says_so_in_one_line(lambda: Placement.read(path, name, ranks=placement.ranks, spec=spec))


@given(draw=st.data())
@FUZZ
def test_a_changed_migration(draw: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    write_schedule(schedule([[[0], [1]]], Placement([[[1], [0]]], 2)), path)
    path.write_text(json.dumps(change_one(json.loads(path.read_text()), draw.draw)))
    says_so_in_one_line(lambda: read_schedule(path))


@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize("bad", [
    b"[" * 20_000, b"{" * 20_000, b"- " * 20_000, b'{"a":' * 20_000, b"1" * 5000, b"[" + b"9" * 5000 + b"]",
    b"a: &a [*a]\n", b"<<: {a: 1}\n", b"? [a]\n: 1\n", b"!!python/object/apply:os.system ['true']\n", b"%YAML 9.9\n---",
    b"2020-99-99: 1\n", b"a: !!int x\n", b"a: !!binary x\n", b"a: 1:99999999999\n", b"? {}\n: 1\n", b"? !!set {}\n: 1",
], ids=lambda bad: bad[:12].decode())  # fmt: skip
def test_hostile_files(name: str, bad: bytes, tmp_path: Path) -> None:
    path = tmp_path / "experts"
    start = b"num_slots: 1\ninitial_global_assignments:\n  " if name == "trtllm" else b""
    for content in (bad, start + bad):
        path.write_bytes(content)
        with pytest.raises(MoesimError) as caught:
            Placement.read(path, name, ranks=1)
        assert "\n" not in str(caught.value)
