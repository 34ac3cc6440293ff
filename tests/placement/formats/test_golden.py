"""What engines document, byte for byte: eight experts in ten slots of two ranks, MoE layers 1 and 2 of three."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from moesim.placement import Placement
from moesim.placement.formats.schedule import read_schedule, write_schedule
from moesim.placement.rounds import schedule
from moesim.spec import ModelSpec

GOLDEN = Path(__file__).parent / "golden"
SPEC = ModelSpec("golden", (1, 2), 3, experts=8, top_k=2, hidden=8, intermediate=8)
PLACEMENT = Placement(
    [[[7, 2, 0, 3, 5], [6, 1, 4, 7, 2]], [[0, 1, 2, 3, 4], [5, 6, 7, 0, 1]]], 8
).for_model(SPEC)  # fmt: skip
FILES = {
    "sglang": "sglang.json",
    "trtllm": "trtllm.yaml",
    "vllm-ascend": "vllm-ascend.json",
    "vllm-41141": "vllm-41141.jsonl",
    "vllm-49572": "vllm-49572.json",
    "csv": "placement.csv",
}


@pytest.mark.parametrize(("format", "name"), FILES.items())
def test_files_are_written_and_read_as_documented(format: str, name: str, tmp_path: Path) -> None:
    PLACEMENT.write(tmp_path / name, format=format)
    assert (tmp_path / name).read_bytes() == (GOLDEN / name).read_bytes()
    assert Placement.read(GOLDEN / name, ranks=2, spec=SPEC) == PLACEMENT


class TestTensorRtLlm:
    """The checks of its loader, made here again: it is no CPU program."""

    @staticmethod
    def load(data: Any, experts: int, moe_layers: list[int], ep_size: int) -> dict[int, list[list[int]]]:
        assert set(data) <= {"num_slots", "initial_global_assignments", "layer_updates_per_iter"}  # extra="forbid"
        assert data["num_slots"] % ep_size == 0
        assert data["num_slots"] >= experts
        local = data["num_slots"] // ep_size
        loaded = {}
        for layer in moe_layers:
            row = {int(key): row for key, row in data["initial_global_assignments"].items()}[layer]
            assert len(row) == data["num_slots"]
            assert set(row) == set(range(experts))
            loaded[layer] = [row[rank * local : (rank + 1) * local] for rank in range(ep_size)]
        return loaded

    def test_what_we_write_passes_them(self) -> None:
        data = yaml.safe_load((GOLDEN / "trtllm.yaml").read_text())
        loaded = self.load(data, 8, [1, 2], 2)
        assert [loaded[1], loaded[2]] == PLACEMENT.experts.tolist()

    @pytest.mark.parametrize("text", [
        "initial_global_assignments:\n  '1': [0, 1, 0]\n  '2': [1, 0, 1]\nnum_slots: 3\n",
        "num_slots: 3\ninitial_global_assignments:\n 1:\n  - 0\n  - 1\n  - 0\n 2: [1, 0, 1]\nlayer_updates_per_iter: 1",
        '{"num_slots": 3, "initial_global_assignments": {"1": [0, 1, 0], "2": [1, 0, 1]}}',
        "num_slots: 3\ninitial_global_assignments: {1: [0, 1, 0], 2: [1, 0, 1], 3: [0, 0, 1]} # 3 predicts ahead\n",
    ])  # fmt: skip
    def test_every_form_that_it_parses_is_read(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "e.yaml").write_text(text)
        spec = ModelSpec("two", (1, 2), 3, experts=2, top_k=1, hidden=8, intermediate=8)
        read = Placement.read(tmp_path / "e.yaml", ranks=3, spec=spec)
        assert read.physical_to_logical.tolist() == [[0, 1, 0], [1, 0, 1]]


class TestAscend:
    """Its loader, as described: positions count, a rank sends to copy ``rank % copies``."""

    @staticmethod
    def tables(data: Any, experts: int) -> Any:
        """Return [layers][ranks][experts]: the slot to which a rank sends."""
        tables = []
        for layer in data["layer_list"]:
            flat = [expert for device in layer["device_list"] for expert in device["device_expert"]]
            copies = [[slot for slot, held in enumerate(flat) if held == expert] for expert in range(experts)]
            ranks = range(len(layer["device_list"]))
            tables.append([[found[rank % len(found)] for found in copies] for rank in ranks])
        return tables

    def test_every_rank_sends_to_slots_that_hold_the_expert(self) -> None:
        data = json.loads((GOLDEN / "vllm-ascend.json").read_text())
        assert data["moe_layer_count"] == len(data["layer_list"]) == 2
        for layer, ranks in enumerate(self.tables(data, 8)):
            for table in ranks:
                assert PLACEMENT.physical_to_logical[layer][table].tolist() == list(range(8))


def test_a_migration_lists_its_copies_layer_by_layer(tmp_path: Path) -> None:
    running = Placement([[[0, 1, 2, 3, 4], [5, 6, 7, 0, 1]]] * 2, 8).for_model(SPEC)
    write_schedule(schedule(running.experts, PLACEMENT), tmp_path / "m.json")
    assert (tmp_path / "m.json").read_bytes() == (GOLDEN / "migration.json").read_bytes()
    reached = Placement(read_schedule(GOLDEN / "migration.json").run(running.experts), 8)
    assert (reached.has == PLACEMENT.has).all()
