"""Our files in SGLang's own loader, taken from its wheel: every rank loads the planned map.

The wheel is found in the folder MOESIM_SGLANG, or in .venv/engines, where this puts it:
``pip install --no-deps --no-compile --target .venv/engines sglang==0.5.23 && pip install msgspec``.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from placement.worlds import random_placement

from moesim.base.errors import FormatError
from moesim.placement import Placement, architectures, fill_empty, nearest_table, table_of
from moesim.placement.export import export
from moesim.placement.launch import launch
from moesim.spec import ModelSpec

VERSION = "0.5.23"
Ask = Callable[[list[dict[str, Any]]], Any]


@pytest.fixture(scope="session")
def sglang(root: Path) -> Path:
    """Folder that holds the package sglang of the pinned version."""
    folder = Path(os.environ.get("MOESIM_SGLANG", root / ".venv" / "engines"))
    if not (folder / f"sglang-{VERSION}.dist-info").is_dir():
        pytest.skip(f"no sglang {VERSION} in {folder.name}: MOESIM_SGLANG names no folder with its wheel")
    for package in ("torch", "msgspec"):
        pytest.importorskip(package, reason=f"SGLang's loader imports {package}")
    return folder


@pytest.fixture(scope="session")
def ask(sglang: Path) -> Ask:
    """Return the answers of the loader, one list a case, one entry a rank."""
    program = Path(__file__).with_name("sglang_loader.py")

    def run(cases: list[dict[str, Any]]) -> Any:
        done = subprocess.run(
            [sys.executable, str(program), str(sglang)], input=json.dumps(cases), capture_output=True, text=True,
            check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout)

    return run


def a_case(placement: Placement, spec: ModelSpec, location: str, policy: str, nodes: int) -> dict[str, Any]:
    """The case that our launch flags make."""
    given = launch(placement, location, "sglang", spec=spec, policy=policy).flags
    flags = dict(zip(*[iter(given)] * 2, strict=True))
    assert flags["--ep-size"] == flags["--tp-size"] == str(placement.ranks)
    return {
        "location": flags["--init-expert-location"],
        "redundant": int(flags["--ep-num-redundant-experts"]),
        "dispatch": flags["--ep-dispatch-algorithm"],
        "backend": flags["--moe-a2a-backend"],
        "ranks": placement.ranks,
        "nodes": nodes,
        "layers": spec.num_hidden_layers,
        "experts": spec.experts,
    }


# layers, hidden layers, ranks, nodes, slots a rank, experts
WORLDS = [
    (2, 3, 2, 1, 5, 8),
    (3, 5, 4, 2, 4, 10),
    (2, 4, 8, 2, 6, 32),
    (1, 1, 6, 3, 5, 7),
    (4, 4, 8, 4, 8, 64),
    (2, 2, 8, 2, 8, 40),
]


def test_every_rank_loads_the_planned_map(ask: Ask, tmp_path: Path) -> None:
    # and the policy `sglang` is its static table, entry by entry
    made, cases = [], []
    for number, (layers, hidden, ranks, nodes, slots, experts) in enumerate(WORLDS):
        rng = np.random.default_rng(number)
        ids = tuple(sorted(rng.choice(hidden, layers, replace=False).tolist()))
        spec = ModelSpec("deepseek-v3-like", ids, hidden, experts, top_k=2, hidden=8, intermediate=8)
        placement = random_placement(rng, layers, ranks, slots, experts)
        placement = fill_empty(placement, rng.random((layers, experts))).for_model(spec)
        path = tmp_path / f"{number}.json"
        for policy in ("nearest", "sglang", "uniform"):
            export(placement, path, "sglang", spec=spec, policy=policy)
            made.append((placement, spec, nodes, policy))
            cases.append(a_case(placement, spec, str(path), policy, nodes))
    for (placement, spec, nodes, policy), ranks in zip(made, ask(cases), strict=True):
        assert len(ranks) == placement.ranks
        node = np.arange(placement.ranks) // (placement.ranks // nodes)
        exact = table_of("sglang", placement, node)
        for rank, loaded in enumerate(ranks):
            assert np.array_equal(np.array(loaded["map"])[list(spec.layer_ids)], placement.physical_to_logical)
            assert np.min(loaded["copies"]) >= 1
            if policy != "uniform" or placement.replicas.max() == 1:
                table = np.array(loaded["table"])[list(spec.layer_ids)]
                assert np.array_equal(table, exact[:, rank])
                held = np.take_along_axis(placement.physical_to_logical, table, axis=1)
                assert np.array_equal(held, np.tile(np.arange(spec.experts), (spec.layers, 1)))
                same_distance(placement, table, rank, nodes)
                first_of_the_node(placement, table, rank, nodes)
            else:
                assert loaded["table"] is None
                copies = np.array(loaded["copies"])[list(spec.layer_ids)]
                assert np.array_equal(copies, placement.replicas)


def same_distance(placement: Placement, table: np.ndarray, rank: int, nodes: int) -> None:
    """SGLang's copy and that of our policy `nearest` are both on the own rank, or on the own node, or on neither."""
    node = np.arange(placement.ranks) // (placement.ranks // nodes)
    ours = nearest_table(placement, node)[:, rank]
    mine, theirs = ours // placement.slots_per_rank, table // placement.slots_per_rank
    assert np.array_equal(mine == rank, theirs == rank)
    assert np.array_equal(node[mine] == node[rank], node[theirs] == node[rank])


def first_of_the_node(placement: Placement, table: np.ndarray, rank: int, nodes: int) -> None:
    """Where a node, but not the rank, holds some of the copies, it takes the first: what a note of ours says."""
    size = placement.ranks // nodes
    for layer, expert in np.argwhere(~placement.has[:, :, rank]):
        indptr, ranks, slots = placement.holders(int(layer))
        start, stop = indptr[[expert, expert + 1]]
        near = ranks[start:stop] // size == rank // size
        if near.any() and not near.all():
            first = int(np.argmax(near))
            physical = ranks[start + first] * placement.slots_per_rank + slots[start + first]
            assert table[layer, expert] == physical


def test_it_uses_copies_less_evenly_than_nearest(ask: Ask, tmp_path: Path) -> None:
    spec = ModelSpec("deepseek-v3-like", (0, 1), 2, experts=16, top_k=2, hidden=8, intermediate=8)
    placement = random_placement(np.random.default_rng(0), 2, 8, 4, 16)
    placement = fill_empty(placement, np.ones((2, 16))).for_model(spec)
    export(placement, tmp_path / "e.json", "sglang", spec=spec, policy="nearest")
    [ranks] = ask([a_case(placement, spec, str(tmp_path / "e.json"), "nearest", 1)])
    theirs = np.array([loaded["table"] for loaded in ranks]).transpose(1, 0, 2)
    uneven = {}
    for name, table in (("ours", nearest_table(placement, np.zeros(8, dtype=np.int32))), ("theirs", theirs)):
        # source ranks that use a slot; all copies of an expert are equally far here, but for the own one
        users = np.array([np.bincount(layer.ravel(), minlength=32) for layer in table])
        uneven[name] = max(
            int(np.ptp(users[layer][placement.physical_to_logical[layer] == expert]))
            for layer in range(2)
            for expert in range(16)
        )
    assert uneven["ours"] <= 1 < uneven["theirs"]


FOUR = ModelSpec("deepseek-v3-four", (0, 1), 2, experts=4, top_k=2, hidden=8, intermediate=8)
GOOD = [0, 1, 2, 0, 3, 1]
# what SGLang says of it, and what we say
TRAPS: dict[str, tuple[Any, str | None, str]] = {
    "good": ([GOOD, GOOD], None, ""),
    "expert missing": ([GOOD, [0, 1, 2, 0, 2, 1]], None, "expert 3 is in no slot"),
    "id -1": ([GOOD, [0, 1, 2, 3, 2, -1]], None, "expected experts in 0..3, found -1"),
    "row too many": ([GOOD, GOOD, GOOD], None, "expected 2 rows, one a decoder layer"),
    "rows too short": ([[0, 1, 2, 3], [0, 1, 2, 3]], None, ""),
    "id too large": ([GOOD, [0, 1, 2, 0, 3, 4]], "IndexError", "expected experts in 0..3, found 4"),
    "rows of two lengths": ([GOOD, [0, 1, 2, 3]], "ValueError", "expected 6 slots, found 4"),
}


def test_what_it_accepts_and_misreads_we_refuse(ask: Ask, tmp_path: Path) -> None:
    placement = Placement.from_physical([GOOD, GOOD], 2, 4).for_model(FOUR)
    cases = []
    for name, (rows, _, _) in TRAPS.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"physical_to_logical_map": rows}))
        cases.append(a_case(placement, FOUR, str(tmp_path / f"{name}.json"), "uniform", 1))
    for (name, (_, error, ours)), ranks in zip(TRAPS.items(), ask(cases), strict=True):
        assert {answer.get("error") for answer in ranks} == {error}, name
        if ours:
            with pytest.raises(FormatError, match=re.escape(ours)):
                Placement.read(tmp_path / f"{name}.json", ranks=2, spec=FOUR)


def test_another_key_breaks_its_loader(ask: Ask, tmp_path: Path) -> None:
    placement = Placement.from_physical([GOOD, GOOD], 2, 4).for_model(FOUR)
    path = tmp_path / "e.json"
    path.write_text(json.dumps({"physical_to_logical_map": [GOOD, GOOD], "made_by": "us"}))
    assert ask([a_case(placement, FOUR, str(path), "uniform", 1)]) == [[{"error": "TypeError"}] * 2]


def test_the_architectures_it_can_place(sglang: Path) -> None:
    classes: dict[str, list[tuple[list[str], bool]]] = {}
    entries: set[str] = set()
    for file in (sglang / "sglang" / "srt" / "models").rglob("*.py"):
        for part in ast.parse(file.read_text()).body:
            if isinstance(part, ast.ClassDef):
                bases = [base.id for base in part.bases if isinstance(base, ast.Name)]
                named = [item.name for item in part.body if isinstance(item, ast.FunctionDef)]
                known = "get_model_config_for_expert_location" in named
                classes.setdefault(part.name, []).append((bases, known))
            elif isinstance(part, ast.Assign) and ast.unparse(part.targets[0]) == "EntryClass":
                entries |= {name.id for name in ast.walk(part.value) if isinstance(name, ast.Name)}

    def places(name: str) -> bool:
        return any(
            known or any(base != name and places(base) for base in bases) for bases, known in classes.get(name, [])
        )

    left_out = re.compile("NextN|MTP|Eagle|^Transformers|^MindSpore")
    assert {name for name in entries if places(name) and not left_out.search(name)} == architectures.SGLANG
    assert not places("MixtralForCausalLM")


def test_its_command_line_has_our_flags(sglang: Path) -> None:
    fields = "".join(file.read_text() for file in (sglang / "sglang/srt/arg_groups/fields").glob("*.py"))
    placement = Placement.from_physical([GOOD, GOOD], 2, 4).for_model(FOUR)
    for flag in launch(placement, "experts.json", "sglang", spec=FOUR, policy="nearest").flags[::2]:
        assert re.search(rf"^    {flag[2:].replace('-', '_')}: A\[", fields, re.MULTILINE), flag
