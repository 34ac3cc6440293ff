"""EPLB, written anew, gives the published program's answers; with its own sort, ties included."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from moesim.base.errors import InputError
from moesim.solve.eplb import Floats, Order, balanced_packing, heaviest_first, rebalance, replicate_experts

CASES = ["readme", *(f"case{i}" for i in range(8))]


def torch_order(load: Floats) -> NDArray[np.int64]:
    """The sort that the published program calls; it is not stable."""
    torch = pytest.importorskip("torch")
    return np.asarray(torch.from_numpy(load).sort(-1, descending=True).indices.numpy())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("order", [torch_order, heaviest_first])
def test_answers_equal_the_reference(shared_data: Path, name: str, order: Order) -> None:
    cases = {case["name"]: case for case in json.loads((shared_data / "eplb/cases.json").read_text())}
    case = cases[name]
    with np.load(shared_data / "eplb/reference.npz") as data:
        weight, wanted, count = (data[f"{name}__{k}"] for k in ("weight", "physical_to_logical", "logical_count"))
    # the published entry point goes global where groups do not divide over nodes; here the caller says so
    hierarchical = case["num_groups"] % case["num_nodes"] == 0
    placed, copies = rebalance(
        weight, case["num_replicas"], groups=case["num_groups"], nodes=case["num_nodes"], ranks=case["num_gpus"],
        hierarchical=hierarchical, order=order,
    )  # fmt: skip
    np.testing.assert_array_equal(copies, count)
    if order is torch_order:
        np.testing.assert_array_equal(placed, wanted)
    else:
        # where copies of different experts carry exactly the same load, the published sort may swap the two
        share = np.take_along_axis((weight / copies).astype(np.float32), wanted, axis=1)
        ours = np.take_along_axis((weight / copies).astype(np.float32), placed, axis=1)
        np.testing.assert_array_equal(ours, share)


def test_a_tie_goes_to_the_lower_index() -> None:
    expert, copies = replicate_experts(np.array([[4, 4, 4]]), 5)
    assert expert.tolist() == [[0, 1, 2, 0, 1]]
    assert copies.tolist() == [[2, 2, 1]]
    pack, place = balanced_packing(np.array([[5, 5, 5, 5]]), 2)
    assert pack.tolist() == [[0, 1, 0, 1]]
    assert place.tolist() == [[0, 0, 1, 1]]


def test_sizes_that_do_not_divide_say_what_to_do() -> None:
    weight = np.ones((1, 12))
    with pytest.raises(InputError, match=r"2 nodes do not divide 3 expert groups.*use eplb \(global\)"):
        rebalance(weight, 16, groups=3, nodes=2, ranks=4, hierarchical=True)
    with pytest.raises(InputError, match="5 ranks do not divide 16 slots"):
        rebalance(weight, 16, ranks=5, hierarchical=False)
    with pytest.raises(InputError, match="8 slots cannot hold 12 experts"):
        rebalance(weight, 8, ranks=4, hierarchical=False)
