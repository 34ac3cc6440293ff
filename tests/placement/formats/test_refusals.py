"""What an engine would refuse, or accept and misread, is refused on reading, and the line says where it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moesim.base.errors import FormatError, InputError
from moesim.placement import EMPTY, PLACEMENT_FORMATS, Placement
from moesim.placement.formats.schedule import read_schedule
from moesim.spec import ModelSpec

SPEC = ModelSpec("four", (1, 2), 3, experts=4, top_k=2, hidden=8, intermediate=8)


def refused(folder: Path, content: str, message: str, format: str, ranks: int | None = 2, **context: Any) -> None:
    (folder / "e").write_text(content)
    with pytest.raises(FormatError, match=message):
        Placement.read(folder / "e", format, ranks=ranks, **context)


@pytest.mark.parametrize("name", sorted(set(PLACEMENT_FORMATS.names()) - {"json", "csv"}))
def test_no_engine_gets_an_empty_slot(name: str, tmp_path: Path) -> None:
    placement = Placement([[[0, 1, 2], [2, 3, EMPTY]]] * 2, 4).for_model(SPEC)
    with pytest.raises(InputError, match=r"layer 0, rank 1, slot 2 is empty"):
        placement.write(tmp_path / "e.npz", format=name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("changes", "message"), [
    ({"ep_size": 2}, "ep_size: Extra inputs are not permitted"),
    ({"num_slots": 5}, "assignments.1: expected num_slots = 5 slots, found 4"),
    ({"num_slots": None}, "num_slots: .*integer, found None"),
    ({"layer_updates_per_iter": -1}, "layer_updates_per_iter: "),
    ({"initial_global_assignments": {1: [0, 1, 2, 3]}}, r"each MoE layer of 'four' .*layer 2 is missing"),
    ({"initial_global_assignments": {0: [0, 1, 2, 3], 1: [0, 1, 2, 3], 2: [0, 1, 2, 3]}}, "layer 0 is none of them"),
    ({"initial_global_assignments": {1: [0, 1, 2, 2], 2: [0, 1, 2, 3]}}, "expert 3 of layer 0 is on no rank"),
    ({"initial_global_assignments": {1: [0, 1, 2, 9], 2: [0, 1, 2, 3]}}, r"assignments.1.3: expected .* 0..3, found 9"),
    ({"initial_global_assignments": {"x": [0, 1, 2, 3]}}, "assignments.x: expected a decoder index"),
    ({"initial_global_assignments": {"1": [0, 1, 2, 3], "01": [0, 1, 2, 3]}}, "this layer is there twice"),
])  # fmt: skip
def test_tensorrt_llm(changes: Any, message: str, tmp_path: Path) -> None:
    good = {"num_slots": 4, "initial_global_assignments": {1: [0, 1, 2, 3], 2: [3, 2, 1, 0]}}
    refused(tmp_path, json.dumps(good | changes), message, "trtllm", spec=SPEC)


@pytest.mark.parametrize(("text", "message"), [
    ("num_slots: 2\nnum_slots: 4\ninitial_global_assignments: {0: [0, 1]}\n", "line 2: .*'num_slots' is not wanted"),
    ("num_slots: 2\ninitial_global_assignments: {0: [0, 1], '0': [1, 0]}\n", "line 2: .*'0' is not wanted"),
    ("num_slots: 2\ninitial_global_assignments:\n  0: [0, 1\n", "line 4: expected YAML"),
    ("num_slots: 2\ninitial_global_assignments: [[0, 1]]\n", "initial_global_assignments: .*dictionary"),
])  # fmt: skip
def test_yaml_that_would_be_misread(text: str, message: str, tmp_path: Path) -> None:
    refused(tmp_path, text, message, "trtllm")


def ascend(*layers: list[list[int]], **changes: Any) -> str:
    held = [
        {
            "layer_id": number,
            "device_count": len(devices),
            "device_list": [{"device_id": i, "device_expert": experts} for i, experts in enumerate(devices)],
        }
        for number, devices in enumerate(layers)
    ]
    return json.dumps({"moe_layer_count": len(held), "layer_list": held} | changes)


GOOD = [[0, 1], [2, 3]]


@pytest.mark.parametrize(("text", "message"), [
    (ascend([[0, 1, 1], [2, 3, 0]]), "expert 1 is twice on rank 0 in layer 0"),
    (ascend([[0, 1, 2], [2, 0, 1]], GOOD), r"layer_list.1.*as many experts as on the first device .3., found 2"),
    (ascend([[0, 1], [2, 1]]), "expert 3 of layer 0 is on no rank"),
    (ascend([[0, 1], [2, 4]]), "layer_list.0.3: expected an expert in 0..3, found 4"),
    (ascend([[0, 1], [2, -1]]), "found -1"),
    (ascend([[0, 1], [2, 3, 0]]), "layer_list.0.device_list.1.device_expert: expected as many experts .*found 3"),
    (ascend([[0], [1], [2], [3]]), "expected a device for each rank .2., found 4"),
    (ascend(GOOD, [[0, 1, 2, 3]]), "layer_list.1.device_list: .* as many devices as in the first layer .2., found 1"),
    (ascend(GOOD, moe_layer_count=2), "moe_layer_count: expected 1, the length of layer_list, found 2"),
    (ascend(GOOD).replace('"layer_id": 0', '"layer_id": 1'), "layer_id: expected 0, its position, found 1"),
    (ascend(GOOD).replace('"device_id": 1', '"device_id": 2'), "device_id: expected 1, its position, found 2"),
    (ascend(GOOD, GOOD, GOOD), "has 3 layers of 4 experts, but model 'four' has 2 MoE layers"),
])  # fmt: skip
def test_ascend(text: str, message: str, tmp_path: Path) -> None:
    refused(tmp_path, text, message, "vllm-ascend", spec=SPEC)


def test_ascend_ignores_keys_that_its_engine_ignores(tmp_path: Path) -> None:
    (tmp_path / "e.json").write_text(ascend(GOOD, GOOD, made_by="another"))
    assert Placement.read(tmp_path / "e.json", spec=SPEC).experts.tolist() == [GOOD, GOOD]


RECORD = {
    "record_type": "eplb_initial_mapping",
    "version": 1,
    "num_redundant_experts": 0,
    "num_slots": 4,
    "initial_global_assignments": {"0": [0, 1, 2, 3], "1": [0, 1, 2, 3]},
}


@pytest.mark.parametrize(("changes", "message"), [
    ({"record_type": "eplb_load_stats"}, "record_type: "),
    ({"version": 2}, "version: .*found 2"),
    ({"num_redundant_experts": 1}, "expected 4 experts of 'four', found 4 slots of which 1 are redundant"),
    ({"initial_global_assignments": {"1": [0, 1, 2, 3], "2": [0, 1, 2, 3]}}, "assignments.0: this MoE layer is miss"),
    ({"num_slots": 5, "num_redundant_experts": 1}, "assignments.0: expected num_slots = 5 slots, found 4"),
])  # fmt: skip
def test_vllm_41141(changes: Any, message: str, tmp_path: Path) -> None:
    refused(tmp_path, json.dumps(RECORD | changes), message, "vllm-41141", spec=SPEC)


def test_vllm_41141_holds_one_record(tmp_path: Path) -> None:
    refused(tmp_path, f"{json.dumps(RECORD)}\n\n{json.dumps(RECORD)}\n", "expected one line,.* found 2", "vllm-41141")


@pytest.mark.parametrize(("text", "message"), [
    ("[[0, 1, 2, 3], [0, 1, 2]]", "row 1: expected 4 slots as in the first layer, found 3"),
    ("[[0, 1, 2, 3]]", "has 1 layer of 4 experts"),
    ("[[0, 1, 2, 3], [0, 1, 2, 99999999999999999999]]", "row 1.3: expected an expert in 0..3"),
    ("[]", "expected at least one layer"),
    ("[0, 1, [2]]", "2: .*integer"),
    ("{}", "list"),
])  # fmt: skip
def test_vllm_49572(text: str, message: str, tmp_path: Path) -> None:
    refused(tmp_path, text, message, "vllm-49572", spec=SPEC)


def test_a_row_that_layers_share_needs_their_number(tmp_path: Path) -> None:
    refused(tmp_path, "[0, 1, 2, 3]", "does not tell their number: give spec", "vllm-49572")
    read = Placement.read(tmp_path / "e", ranks=2, spec=SPEC)
    assert read.experts.tolist() == [GOOD, GOOD]
    refused(tmp_path, "[[0, 1, 2, 3]]", "give ranks", "vllm-49572", ranks=None)


HEAD = "layer,rank,slot,expert\n"


@pytest.mark.parametrize(("text", "message"), [
    ("layer,rank,expert\n0,0,0\n", "line 1: expected the columns layer,rank,slot,expert"),
    (HEAD, "expected one line a slot, found none"),
    (HEAD + "0,0,0,0\n0,1,0\n", "line 3: expected four whole numbers"),
    (HEAD + "0,0,0,0\n0,1,0,1.5\n", "line 3: expected four whole numbers"),
    (HEAD + "0,-1,0,0\n", "line 2: expected four whole numbers, none but the expert below 0"),
    (HEAD + "0,0,0,0\n0,3,0,1\n", "= .1, 4, 1., 4 in all, found 2"),
    (HEAD + "0,0,0,0\n0,0,0,1\n", "= .1, 1, 1., 1 in all, found 2"),
    (HEAD + "0,0,0,0\n0,1,1,1\n0,0,0,2\n0,1,1,3\n", "layer 0, rank 0, slot 1: expected one line, found none"),
    (HEAD + "0,0,0,0\n", "rank: expected 2 ranks, found 1"),
    (HEAD + "0,0,0,0\n0,1,0,2\n", "expert 1 of layer 0 is on no rank|cannot hold 3 experts"),
    (HEAD + "999999999,0,0,0\n", "1000000000 in all, found 1"),
])  # fmt: skip
def test_csv(text: str, message: str, tmp_path: Path) -> None:
    refused(tmp_path, text, message, "csv")


def test_lines_of_a_table_may_stand_in_any_order(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text("layer,rank,slot,expert\r\n0,1,0,1\r\n\r\n0,0,0,0\r\n")
    assert Placement.read(tmp_path / "e.csv").experts.tolist() == [[[0], [1]]]


# commit, round, layer, expert, source, target, slot
@pytest.mark.parametrize(("moves", "message"), [
    ([(0, 0, 0, 0, 1, 1, 0)], "moves.0: rank 1 sends to itself"),
    ([(0, 0, 2, 0, 0, 1, 0)], "moves.0: expected a layer below 2, ranks below 3 and a slot below 2"),
    ([(0, 0, 0, 0, 0, 3, 0)], "moves.0: expected a layer below 2, ranks below 3"),
    ([(0, 0, 0, 0, 0, 1, 2)], "moves.0: expected a layer below 2, ranks below 3 and a slot below 2"),
    ([(0, 0, 1, 0, 0, 1, 0), (1, 0, 0, 0, 0, 1, 0)], "moves.1: layer 0 comes after a later one"),
    ([(0, 0, 0, 0, 0, 1, 0), (0, 0, 1, 0, 0, 1, 0)], "moves.1: commit 0 is of layer 0"),
    ([(0, 1, 0, 0, 0, 1, 0), (0, 0, 0, 1, 0, 1, 1)], "moves.1: commit 0, round 0 comes after a later one"),
    ([(0, 0, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, 1, 1)], "moves.1: rank 1 receives expert 0 twice"),
    ([(0, 0, 0, 0, 0, 1, 0), (0, 1, 0, 1, 0, 1, 0)], "moves.1: slot 0 of rank 1 is filled twice"),
    ([(0, 0, 0, 0, 0, 1, 0), (0, 0, 0, 1, 2, 1, 1)], "moves.1: rank 1 meets ranks 0 and 2 in one round"),
    ([(0, 0, 0, -1, 0, 1, 0)], "moves.0.expert: "),
    ([(0, 0, 0, 0, -2, 1, 0)], "moves.0.source: "),
    ([(0, 0, 0, 10**12, 0, 1, 0)], "moves: "),
])  # fmt: skip
def test_a_migration(moves: list[tuple[int, ...]], message: str, tmp_path: Path) -> None:
    names = ("commit", "round", "layer", "expert", "source", "target", "slot")
    named = [dict(zip(names, move, strict=True)) for move in moves]
    data = {"schema_version": "moesim.migration/2", "layers": 2, "ranks": 3, "slots": 2, "moves": named}
    (tmp_path / "m.json").write_text(json.dumps(data))
    with pytest.raises(FormatError, match=message):
        read_schedule(tmp_path / "m.json")
