"""From any placement to the most similar one that respects the constraints, layer by layer."""

from __future__ import annotations

from typing import Final

import numpy as np
from joblib import Parallel, delayed

from moesim.base.arrays import Array
from moesim.base.errors import Infeasible, InputError
from moesim.base.units import count
from moesim.placement.seats import seats
from moesim.solve.limits import Limits, holders

_MOST_S: Final = 60.0
"""Seconds for a layer before giving up; a layer of 256 experts on 32 ranks takes a fraction of one."""
_INFEASIBLE: Final = 2
"""What SciPy's ``milp`` returns where it is proven that there is no answer."""


def conform(experts: Array, limits: Limits, loads: Array, *, jobs: int = 1) -> tuple[Array, int]:
    """Return the placement with the constraints respected, and how many layers had to change for it.

    Every layer keeps as many of its copies as the constraints allow, the heaviest rather than light ones; freed slots
    are filled from what runs now before anything is moved.

    Parameters
    ----------
    experts
        Expert of every slot, int [layers, ranks, slots], -1 where empty. Experts may be nowhere.
    loads
        Load of each expert, float64 [layers, experts].
    jobs
        Threads.

    Raises
    ------
    Infeasible
        If it is proven that no placement respects them.
    InputError
        If none was found in the work that a layer may take.
    """
    held = holders(experts, loads.shape[1])
    wrong = limits.breaking(experts) | np.any(~np.any(held, axis=2), axis=1)
    layers = np.flatnonzero(wrong)
    parallel = Parallel(n_jobs=jobs, backend="threading")
    solved = parallel(delayed(_nearest)(held[i], limits, loads[i], int(i)) for i in layers)
    for layer, found in zip(layers, solved, strict=True):
        held[layer] = found
    return seated(held, experts, limits.room), len(layers)


def seated(held: Array, experts: Array, room: Array) -> Array:
    """Return slots for who holds what; copies that stay keep their slot where it is one of the rank's first ``room``.

    Parameters
    ----------
    held
        bool [layers, experts, ranks].
    experts
        Slots before, int [layers, ranks, slots].
    room
        Slots that each rank may fill, int [layers, ranks].
    """
    usable = np.arange(experts.shape[2]) < room[:, :, None]
    return seats(held, experts, usable, np.array(False))


def _nearest(target: Array, limits: Limits, load: Array, layer: int) -> Array:
    """Return who holds what, bool [experts, ranks], as like ``target`` as the constraints allow.

    But for the move budget this is a flow from experts over their nodes to ranks, so the linear relaxation is whole
    but for a few numbers and the mixed-integer program (HiGHS) closes at once.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array

    experts, ranks = target.shape
    was, room, node = limits.was[layer], limits.room[layer], limits.node
    hot = limits.hot[layer] if limits.hard else limits.hot[layer][:0]
    nodes, cells = int(node.max()) + 1, experts * ranks
    expert, rank = np.divmod(np.arange(cells), ranks)
    number = np.arange(len(hot) * nodes)
    # rows: slots of ranks; a copy of every expert; nodes of hot experts that have one; enough such nodes; moves
    rows = [rank, ranks + expert]
    columns, values = [np.arange(cells)] * 2, [np.ones(cells)] * 2
    first = ranks + experts
    if len(hot):
        seat, place = np.divmod(number, nodes)
        spot, member = np.nonzero(node[None, :] == place[:, None])
        rows += [first + number, first + spot, first + len(number) + seat]
        columns += [cells + number, hot[seat[spot]] * ranks + member, cells + number]
        values += [np.ones(len(number)), -np.ones(len(spot)), np.ones(len(number))]
    moved = np.flatnonzero(~was.ravel())
    last = first + len(number) + len(hot)
    if limits.most is not None:
        rows.append(np.full(len(moved), last))
        columns.append(moved)
        values.append(np.ones(len(moved)))
    total = last + (limits.most is not None)
    matrix = coo_array(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=(total, cells + len(number))
    )
    low = np.r_[np.zeros(ranks), np.ones(experts), np.full(len(number), -np.inf), np.full(len(hot), limits.nodes)]
    high = np.r_[room, np.full(experts, ranks), np.zeros(len(number)), np.full(len(hot), nodes)]
    if limits.most is not None:
        low, high = np.r_[low, 0], np.r_[high, limits.most]
    # keep what is wanted, heavy copies first; then rather a full slot than an empty one, rather an old copy than a move
    worth = 20 + 10 * load / max(float(load.max()), 1e-300)
    gain = np.where(target, worth[:, None], np.where(was, 2.0, 1.0)).ravel()
    found = milp(
        -np.r_[gain, np.zeros(len(number))],
        constraints=LinearConstraint(matrix.tocsr(), low, high),
        integrality=np.r_[np.ones(cells), np.zeros(len(number))],
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 1e-3, "time_limit": _MOST_S},
    )
    if found.status == _INFEASIBLE:
        raise Infeasible(
            f"constraints: it is proven (mixed-integer program) that no placement of layer {layer} respects all of "
            f"them together: {_asked(limits, layer)}"
        )
    if found.x is None:
        raise InputError(
            f"constraints: no placement of layer {layer} that respects them was found, nor a proof that there is none: "
            f"{_asked(limits, layer)}; relax one of them"
        )
    return np.asarray(found.x[:cells].reshape(experts, ranks) > 0.5)


def _asked(limits: Limits, layer: int) -> str:
    parts = [count(int(limits.room[layer].sum()), "slot")]
    if limits.most is not None:
        parts.append(f"at most {count(limits.most, 'move')}")
    if limits.hard and limits.hot.size:
        parts.append(f"{count(limits.hot.shape[1], 'hot expert')} on {count(limits.nodes, 'node')}")
    return ", ".join(parts)
