"""Benchmark of the fast path: balance by load alone at DeepSeek-V3's size, beside EPLB written in three ways."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from moesim.solve.eplb import rebalance
from moesim.solve.packing import balance, greedy_copies, rank_loads

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]

LOADS: Final = ("lognormal-0.5", "lognormal-1.0", "zipf-0.8")
"""Popularity of the experts: log-normal with that sigma, or rank to the minus that power."""
SIZES: Final = ((288, 32), (320, 64))
"""Slots and ranks."""


def loads(name: str, layers: int, experts: int, seed: int = 0) -> Floats:
    """Return loads [layers, experts] of one kind of popularity, whole numbers of a million picks a layer."""
    rng = np.random.default_rng(seed)
    kind, number = name.rsplit("-", 1)
    if kind == "lognormal":
        weight = np.exp(float(number) * rng.standard_normal((layers, experts)))
    else:
        weight = np.stack([rng.permutation(np.arange(1, experts + 1.0) ** -float(number)) for _ in range(layers)])
    return np.asarray(np.round(weight / weight.sum(axis=1, keepdims=True) * 1e6))


def eplb_by_layers(load: Floats, slots: int, ranks: int) -> Ints:
    """Return EPLB's global placement [layers, ranks, slots of a rank] by numpy, all layers at once, as vLLM does."""
    layers, experts = load.shape
    each = np.arange(layers)
    copies = np.ones((layers, experts))
    expert = np.tile(np.arange(slots), (layers, 1))
    for slot in range(experts, slots):
        most = (load / copies).argmax(axis=1)
        expert[:, slot] = most
        copies[each, most] += 1
    share = np.take_along_axis(load / copies, expert, axis=1)
    order = np.argsort(-share, axis=1, kind="stable")
    room = slots // ranks
    total, used = np.zeros((layers, ranks)), np.zeros((layers, ranks), np.int64)
    out = np.empty((layers, ranks, room), np.int32)
    for place in range(slots):
        item = order[:, place]
        rank = np.where(used < room, total, np.inf).argmin(axis=1)
        out[each, rank, used[each, rank]] = expert[each, item]
        total[each, rank] += share[each, item]
        used[each, rank] += 1
    return out


def eplb_by_elements(load: Floats, slots: int, ranks: int) -> Ints:
    """Return the same, item by item in Python: how the published program goes over its tensors."""
    layers, experts = load.shape
    room = slots // ranks
    out = np.empty((layers, ranks, room), np.int32)
    for layer in range(layers):
        copies = np.ones(experts)
        expert = np.arange(slots)
        for slot in range(experts, slots):
            most = int((load[layer] / copies).argmax())
            expert[slot] = most
            copies[most] += 1
        share = load[layer, expert] / copies[expert]
        total = [np.float64(0)] * ranks
        used = [0] * ranks
        for item in np.argsort(-share, kind="stable"):
            rank = min((r for r in range(ranks) if used[r] < room), key=total.__getitem__)
            out[layer, rank, used[rank]] = expert[item]
            total[rank] += share[item]
            used[rank] += 1
    return out


def _compiled_eplb(load: Floats, slots: int, ranks: int) -> Ints:
    found, _ = rebalance(load, slots, ranks=ranks, hierarchical=False)
    return found.reshape(len(load), ranks, -1)


def _fast_path(load: Floats, slots: int, ranks: int) -> Ints:
    return balance(load, ranks, slots // ranks)


SOLVERS_TIMED: Final[Mapping[str, Callable[[Floats, int, int], Ints]]] = {
    "fast path": _fast_path,
    "eplb, compiled": _compiled_eplb,
    "eplb, numpy over layers": eplb_by_layers,
    "eplb, item by item": eplb_by_elements,
}
"""Ways to place by load."""


def fast_path(
    layers: int = 58,
    experts: int = 256,
    *,
    kinds: Sequence[str] = LOADS,
    sizes: Sequence[tuple[int, int]] = SIZES,
    solvers: Mapping[str, Callable[[Floats, int, int], Ints]] = SOLVERS_TIMED,
    repeat: int = 3,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return one row per kind of load, size and solver, ready for JSON.

    A row holds ``load``, ``slots``, ``ranks``, ``solver``; ``cpu_s``, the least of ``repeat`` runs, code compiled
    before; ``balance``, mean over layers of mean over largest load of a rank with copies sharing equally; ``gap``, the
    largest over layers of largest load over what no placement can beat, less 1.
    """
    rows = []
    for kind in kinds:
        load = loads(kind, layers, experts, seed)
        for slots, ranks in sizes:
            copies = greedy_copies(load, slots, ranks)
            bound = np.maximum(load.sum(axis=1) / ranks, (load / copies).max(axis=1))
            for name, solver in solvers.items():
                solver(load[:1], slots, ranks)
                seconds = []
                for _ in range(repeat):
                    began = time.process_time()
                    placed = solver(load, slots, ranks)
                    seconds.append(time.process_time() - began)
                found = rank_loads(placed, load)
                rows.append(
                    {
                        "load": kind, "slots": slots, "ranks": ranks, "solver": name, "cpu_s": min(seconds),
                        "balance": float((found.mean(axis=1) / found.max(axis=1)).mean()),
                        "gap": float((found.max(axis=1) / bound).max() - 1),
                    }
                )  # fmt: skip
    return rows


def fast_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows of :func:`fast_path` as a Markdown table."""
    lines = ["| load | slots / ranks | solver | CPU ms | balance | largest gap |", "|" + "---|" * 6]
    lines += [
        f"| {row['load']} | {row['slots']} / {row['ranks']} | {row['solver']} | {row['cpu_s'] * 1e3:.1f} "
        f"| {row['balance']:.4f} | {row['gap']:.2%} |"
        for row in rows
    ]
    return "\n".join(lines)
