"""Every format reads back what it wrote, and refuses what a reader would misread."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moesim.base.errors import FormatError, InputError, MoesimError, UnknownName
from moesim.placement import EMPTY, PLACEMENT_FORMATS, Placement, fill_empty
from moesim.placement.formats.eplb import logical_to_physical
from moesim.spec import ModelSpec

from .worlds import random_placement

SPEC = ModelSpec("tiny", (1, 3), 4, experts=6, top_k=2, hidden=8, intermediate=8)
ENDING = {"eplb": "npz"}


def full_placement(seed: int) -> Placement:
    placement = random_placement(np.random.default_rng(seed), 2, 4, 3, 6).for_model(SPEC)
    return fill_empty(placement, np.ones((2, 6)))


@pytest.mark.parametrize("name", PLACEMENT_FORMATS.names())
@pytest.mark.parametrize("seed", range(5))
def test_what_is_read_is_what_was_written(name: str, seed: int, tmp_path: Path) -> None:
    path = tmp_path / f"experts.{ENDING.get(name, 'json')}"
    placement = full_placement(seed)
    placement.write(path, format=name)
    assert Placement.read(path, format=name, ranks=4, spec=SPEC) == placement
    assert Placement.read(path, ranks=4, spec=SPEC) == placement  # found by looking into it
    first = path.read_bytes()
    placement.write(path, format=name)
    assert path.read_bytes() == first


@pytest.mark.parametrize("name", ["sglang", "eplb"])
def test_engines_get_no_empty_slot(name: str, tmp_path: Path) -> None:
    placement = Placement([[[0, 1], [2, EMPTY]]], 3, layer_ids=(0,), num_hidden_layers=1)
    with pytest.raises(InputError, match=r"layer 0, rank 1, slot 1 is empty.*fill_empty"):
        placement.write(tmp_path / "experts.npz", format=name)
    assert list(tmp_path.iterdir()) == []


def test_our_own_file_keeps_empty_slots_and_needs_no_context(tmp_path: Path) -> None:
    placement = Placement([[[0, 1], [2, EMPTY]]], 3)
    placement.write(tmp_path / "p.json")
    assert Placement.read(tmp_path / "p.json") == placement


@pytest.mark.parametrize("name", PLACEMENT_FORMATS.names())
@given(data=st.binary(max_size=300))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_give_an_error_of_one_line(name: str, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "noise"
    path.write_bytes(data)
    for format in (name, None):
        with pytest.raises(MoesimError) as caught:
            Placement.read(path, format=format, ranks=2, spec=SPEC)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", PLACEMENT_FORMATS.names())
@pytest.mark.parametrize("seed", range(40))
def test_damaged_files_give_an_error_or_a_valid_placement(name: str, seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    path = tmp_path / f"experts.{ENDING.get(name, 'json')}"
    full_placement(seed).write(path, format=name)
    data = bytearray(path.read_bytes())
    if seed % 2:
        data = data[: rng.integers(0, len(data))]
    else:
        data[rng.integers(0, len(data))] ^= 1 << rng.integers(0, 8)
    path.write_bytes(data)
    problem = ""
    try:
        Placement.read(path, format=name, ranks=4, spec=SPEC)
    except MoesimError as error:
        problem = str(error)
    assert "\n" not in problem


def test_unknown_formats_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="did you mean 'sglang'"):
        full_placement(0).write(tmp_path / "p", format="sglan")
    with pytest.raises(FormatError, match="no such file"):
        Placement.read(tmp_path / "absent")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(FormatError, match="looks like no placement format; name one of json, sglang, eplb"):
        Placement.read(tmp_path / "text")


class TestOwnFile:
    def change(self, tmp_path: Path, **changes: Any) -> Path:
        path = tmp_path / "p.json"
        full_placement(0).write(path)
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return path

    def test_one_rank_is_one_line(self, tmp_path: Path) -> None:
        path = self.change(tmp_path)
        full_placement(0).write(path)
        assert path.read_text().count("\n") == 2 * 4

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"schema_version": "moesim.placement/9"}, "schema_version: .*'moesim.placement/1'.*found"),
            ({"note": 1}, "note: Extra inputs are not permitted"),
            ({"num_experts": "6"}, "num_experts: .*integer, found '6'"),
            ({"digest": "0" * 16}, "digest: expected .*the file was changed after it was written"),
            ({"experts": [[[0, 1], [2]]]}, "experts.0: expected as many ranks and slots"),
            ({"experts": [[[0, 9], [2, 3]]], "layer_ids": None, "num_hidden_layers": None}, "holds expert 9"),
        ],
    )
    def test_errors_name_the_place(self, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(FormatError, match=message):
            Placement.read(self.change(tmp_path, **changes))

    def test_another_number_of_ranks(self, tmp_path: Path) -> None:
        with pytest.raises(FormatError, match="expected 8 ranks, found 4"):
            Placement.read(self.change(tmp_path), ranks=8)


class TestSglang:
    def test_one_row_a_decoder_layer_and_no_other_key(self, tmp_path: Path) -> None:
        placement = full_placement(3)
        placement.write(tmp_path / "e.json", format="sglang")
        data = json.loads((tmp_path / "e.json").read_text())
        assert list(data) == ["physical_to_logical_map"]
        rows = np.array(data["physical_to_logical_map"])
        assert np.array_equal(rows[[1, 3]], placement.physical_to_logical)
        # dense layers: trivial, but every expert is there
        assert rows[0].tolist() == rows[2].tolist() == [0, 1, 2, 3, 4, 5] * 2

    def test_layer_numbers_are_needed(self, tmp_path: Path) -> None:
        unnumbered = Placement(full_placement(0).experts, 6)
        with pytest.raises(InputError, match=r"use placement.for_model\(spec\), or give spec"):
            unnumbered.write(tmp_path / "e.json", format="sglang")
        unnumbered.write(tmp_path / "e.json", format="sglang", spec=SPEC)
        assert Placement.read(tmp_path / "e.json", ranks=4, spec=SPEC) == full_placement(0)
        with pytest.raises(FormatError, match="give ranks= and spec="):
            Placement.read(tmp_path / "e.json")

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ({"physical_to_logical_map": [[0]], "note": ""}, "note: Extra inputs are not permitted"),
            ({"physical_to_logical_map": [[0]]}, "expected 4 rows, one a decoder layer of 'tiny', found 1"),
            ({"physical_to_logical_map": [[0, 1, 2, 3, 4, 5], [0], [0], [0]]}, "map.1: expected 6 slots, found 1"),
            ({"physical_to_logical_map": [[0, 1, 2, 3, 4, -1]] * 4}, "map.0: expected experts in 0..5, found -1"),
            ({"physical_to_logical_map": [[0, 1, 2, 3, 4, 0]] * 4}, "map.0: expert 5 is in no slot"),
            ({"physical_to_logical_map": [[0, 1, 2, 3, 3, 3, 4, 5]] * 4}, "expert 3 is twice on rank 1 in layer 0"),
            ({"physical_to_logical_map": [[0.5]]}, "integer, found 0.5"),
        ],
    )
    def test_what_sglang_would_misread_is_refused(self, tmp_path: Path, data: Any, message: str) -> None:
        (tmp_path / "e.json").write_text(json.dumps(data))
        with pytest.raises(FormatError, match=message):
            Placement.read(tmp_path / "e.json", ranks=2, spec=SPEC)


class TestEplb:
    def test_tensors_as_rebalance_experts_returns_them(self, tmp_path: Path) -> None:
        placement = Placement([[[0, 1], [2, 0]]], 3)
        placement.write(tmp_path / "e.npz", format="eplb")
        with np.load(tmp_path / "e.npz") as held:
            assert held["phy2log"].tolist() == [[0, 1, 2, 0]]
            assert held["log2phy"].tolist() == [[[0, 3], [1, -1], [2, -1]]]
            assert held["logcnt"].tolist() == [[2, 1, 1]]

    def test_the_map_alone_needs_the_number_of_ranks(self, tmp_path: Path) -> None:
        placement = Placement([[[0, 1], [2, 0]]], 3)
        placement.write(tmp_path / "e.npy", format="eplb")
        assert Placement.read(tmp_path / "e.npy", ranks=2) == placement
        with pytest.raises(FormatError, match="give ranks"):
            Placement.read(tmp_path / "e.npy")
        with pytest.raises(InputError, match=r"ends in .npz \(all\) or .npy"):
            placement.write(tmp_path / "e.json", format="eplb")

    def test_tensors_must_agree(self, tmp_path: Path) -> None:
        placement = Placement([[[0, 1], [2, 0]]], 3)
        good = {"phy2log": placement.physical_to_logical, "logcnt": placement.replicas}
        # more padding and another order of copies mean the same
        padded = np.full((1, 3, 5), -1)
        padded[:, :, 1:3] = logical_to_physical(placement)[:, :, ::-1]
        np.savez(tmp_path / "e.npz", **good, log2phy=padded)
        assert Placement.read(tmp_path / "e.npz", ranks=2) == placement
        padded[0, 1, 1] = 2
        np.savez(tmp_path / "e.npz", **good, log2phy=padded)
        with pytest.raises(FormatError, match="log2phy: disagrees with phy2log"):
            Placement.read(tmp_path / "e.npz", ranks=2)
        np.savez(tmp_path / "e.npz", phy2log=good["phy2log"].astype(float))
        with pytest.raises(FormatError, match="phy2log: expected integers, found float64"):
            Placement.read(tmp_path / "e.npz", ranks=2)

    def test_pickles_are_refused(self, tmp_path: Path) -> None:
        np.save(tmp_path / "e.npy", np.array([[{}]]), allow_pickle=True)
        with pytest.raises(FormatError, match="expected numpy arrays"):
            Placement.read(tmp_path / "e.npy", ranks=1)
