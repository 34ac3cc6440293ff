"""Take second copies of an expert off a rank, changing as little as possible.

Balancers that look at loads alone can put two copies of one expert on one rank: the second copy wastes a slot,
since the rank already holds the weights. Each such copy is swapped with the slot of another rank whose load per
copy is nearest; where no swap is possible it is replaced by the expert with the most load per copy that the rank
does not hold, and where the rank holds every expert the slot is left empty.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.base.compiled import compiled

EMPTY = -1


@compiled
def _repair(experts: Any, load: Any, area: Any) -> int:
    """Repair ``experts`` [L, R, C] in place and return the slots that held a second copy."""
    areas = area.max() + 1
    layers, ranks, slots = experts.shape
    total = load.shape[1]
    changed = 0
    for layer in range(layers):
        held = np.zeros((ranks, total), np.int32)
        copies = np.zeros(total, np.int32)
        near = np.zeros((areas, total), np.bool_)
        for rank in range(ranks):
            for slot in range(slots):
                expert = experts[layer, rank, slot]
                if expert >= 0:
                    held[rank, expert] += 1
                    copies[expert] += 1
                    near[area[rank], expert] = True
        for rank in range(ranks):
            for slot in range(slots):
                expert = experts[layer, rank, slot]
                if expert < 0 or held[rank, expert] < 2:
                    continue
                changed += 1
                mine = load[layer, expert] / copies[expert]
                best, best_rank, best_slot = np.inf, -1, -1
                for other in range(ranks):
                    if area[other] != area[rank] or held[other, expert] > 0:
                        continue
                    for place in range(slots):
                        guest = experts[layer, other, place]
                        # a swap must not create what it repairs; an empty slot may take the copy
                        if guest >= 0 and held[rank, guest] > 0:
                            continue
                        theirs = load[layer, guest] / copies[guest] if guest >= 0 else 0.0
                        if abs(mine - theirs) < best:
                            best, best_rank, best_slot = abs(mine - theirs), other, place
                if best_rank >= 0:
                    guest = experts[layer, best_rank, best_slot]
                    experts[layer, best_rank, best_slot] = expert
                    held[best_rank, expert] += 1
                    if guest >= 0:
                        held[best_rank, guest] -= 1
                        held[rank, guest] += 1
                else:
                    guest = -1
                    for candidate in range(total):
                        if held[rank, candidate] > 0 or not near[area[rank], candidate]:
                            continue
                        heavier = load[layer, candidate] * copies[guest] > load[layer, guest] * copies[candidate]
                        if guest < 0 or heavier:
                            guest = candidate
                    copies[expert] -= 1
                    if guest >= 0:
                        copies[guest] += 1
                        held[rank, guest] += 1
                experts[layer, rank, slot] = guest
                held[rank, expert] -= 1
    return changed


def repair_duplicates(
    experts: ArrayLike, load: ArrayLike, area: ArrayLike | None = None
) -> tuple[NDArray[np.int32], int]:
    """Return the placement without second copies on a rank, and how many there were.

    Parameters
    ----------
    experts
        Expert of each slot, [layers, ranks, slots], -1 where empty; every expert is somewhere.
    load
        Load of each expert, [layers, experts].
    area
        Area of each rank, [ranks]: experts do not leave theirs (EPLB's hierarchy). One area by default.
    """
    repaired = np.array(experts, dtype=np.int32, order="C")
    areas = np.zeros(repaired.shape[1], np.int32) if area is None else np.array(area, dtype=np.int32)
    changed = _repair(repaired, np.ascontiguousarray(load, dtype=np.float64), areas)
    return repaired, int(changed)
