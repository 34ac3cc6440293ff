"""What the loss of a GPU or a node takes away, what it takes to go on, and what a step then costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike

from moesim.base.arrays import Array
from moesim.base.errors import Infeasible, InputError
from moesim.base.units import count, show
from moesim.cluster import Cluster
from moesim.costs import Costs
from moesim.placement import EMPTY, Placement
from moesim.solve.limits import holders
from moesim.solve.loads import count_loads
from moesim.solve.moving import Move, price
from moesim.solve.objective import score
from moesim.solve.planning import running_experts
from moesim.solve.terms import steps_of_move
from moesim.trace import Batches

KINDS: Final = ("gpu", "node")
"""What can be lost."""


@dataclass(frozen=True)
class Loss:
    """What one failure does.

    Parameters
    ----------
    name, kind, ranks
        What is lost, a GPU or a node by its name in the topology, and how many ranks go with it.
    experts, worst_layer_experts
        Experts that no rank holds any more, over all layers and in the layer with most of them.
    picks
        Share of all picks that want such an expert.
    restore_s
        Seconds until all experts are reachable again, the missing ones read from storage into slots of spare copies;
        0 where none is missing, None where the slots that are left cannot hold all experts.
    step_s, slower
        Seconds of a step after that, the lost ranks' tokens dealt to the others, and its ratio to a step now.
    """

    name: str
    kind: str
    ranks: int
    experts: int
    worst_layer_experts: int
    picks: float
    restore_s: float | None
    step_s: float | None
    slower: float | None


@dataclass(frozen=True)
class Survival:
    """A placement under every single failure.

    Parameters
    ----------
    step_s
        Mean seconds of a step with all ranks.
    losses
        One entry a failure.
    """

    step_s: float
    losses: tuple[Loss, ...]

    def worst(self, kind: str) -> Loss | None:
        """Return the failure of a kind that is worst: cannot be survived, else slowest; None if there is none."""
        of = [loss for loss in self.losses if loss.kind == kind]
        return _worst(of) if of else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data with stable keys."""
        summary: dict[str, Any] = {}
        for kind in KINDS:
            of = [loss for loss in self.losses if loss.kind == kind]
            if of:
                summary[kind] = {
                    "failures": len(of),
                    "survived_at_once": sum(loss.experts == 0 for loss in of),
                    "never_survived": sum(loss.step_s is None for loss in of),
                    "mean_experts": float(np.mean([loss.experts for loss in of])),
                    "worst": dataclasses.asdict(_worst(of)),
                }
        return {"step_s": self.step_s, **summary, "losses": [dataclasses.asdict(loss) for loss in self.losses]}


def _worst(losses: Sequence[Loss]) -> Loss:
    return max(losses, key=lambda loss: (loss.step_s is None, loss.step_s or 0.0))


def survival(
    placement: Placement,
    batches: Batches,
    costs: Costs,
    *,
    policy: str = "nearest",
    kinds: Iterable[str] = KINDS,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Survival:
    """Return what each single failure does to a placement.

    Parameters
    ----------
    batches
        Traffic that goes on; what the lost ranks had is dealt to the others in turn.
    costs
        Cost models of the whole group.
    policy, seed
        Dispatch policy, and the seed of policies that draw.
    kinds
        Of `KINDS`: single GPUs, whole nodes.

    Raises
    ------
    InputError
        If the parts do not fit one another.
    Infeasible
        If a rank has no room to receive a single expert beside its slots.
    """
    cluster = costs.cluster
    if placement.ranks != cluster.ranks or batches.ranks != cluster.ranks:
        raise InputError(
            f"survival: the placement has {count(placement.ranks, 'rank')}, the steps {batches.ranks}, cluster "
            f"{cluster.name} {cluster.ranks}; take as many ranks of the cluster as the placement has, and make the "
            "steps for them"
        )
    say = progress or (lambda _line: None)
    now_s = score(batches, placement, costs, policy, seed).mean_s
    loads = count_loads(batches)
    cases: list[tuple[str, str, Array]] = []
    for kind in kinds:
        if kind == "gpu":
            cases += [(cluster.rank_names[rank], kind, np.array([rank])) for rank in range(cluster.ranks)]
        elif cluster.nodes > 1:
            cases += [(name, kind, cluster.rank_of_node(node)) for node, name in enumerate(cluster.node_names)]
    losses = []
    for name, kind, dead in cases:
        if len(dead) == cluster.ranks:
            continue
        say(f"losing {name}")
        losses.append(_lose(name, kind, dead, placement, batches, costs, loads, policy, seed, now_s))
    return Survival(now_s, tuple(losses))


def _lose(
    name: str, kind: str, dead: Array, placement: Placement, batches: Batches, costs: Costs, loads: Array, policy: str,
    seed: int, now_s: float,
) -> Loss:  # fmt: skip
    alive = np.setdiff1d(np.arange(placement.ranks), dead)
    running = placement.experts[:, alive]
    missing = ~holders(running, placement.num_experts).any(axis=2)
    facts: dict[str, Any] = {
        "name": name,
        "kind": kind,
        "ranks": len(dead),
        "experts": int(missing.sum()),
        "worst_layer_experts": int(missing.sum(axis=1).max()),
        "picks": float(loads[missing].sum() / max(loads.sum(), 1.0)),
    }
    whole = restored(running, loads)
    if whole is None:
        return Loss(**facts, restore_s=None, step_s=None, slower=None)
    left = costs.cluster.restrict(alive.tolist())
    after = costs_on(costs, left)
    step_s = score(without_ranks(batches, dead), whole, after, policy, seed).mean_s
    move = price(steps_of_move(running, whole, costs.spec, left), left, costs.spec.expert_bytes)
    return Loss(**facts, restore_s=move.seconds, step_s=step_s, slower=step_s / now_s)


def restored(running: Array, loads: Array) -> Placement | None:
    """Return a placement in which every expert is somewhere again, with the fewest moves there can be.

    Each missing expert, heaviest first, takes an empty slot or that of the copy whose expert loses least by it, on the
    rank with the least load; that is one move for each, and nothing less will do. None if the slots cannot hold all.

    Parameters
    ----------
    running
        Experts now, int [layers, ranks, slots].
    loads
        Load of each expert, float64 [layers, experts].
    """
    experts = running.copy()
    layers, total = loads.shape
    if experts.shape[1] * min(experts.shape[2], total) < total:
        return None
    for layer in range(layers):
        slots = experts[layer]
        copies = np.bincount(slots[slots != EMPTY], minlength=total)
        for expert in sorted(np.flatnonzero(copies == 0), key=lambda lost: -loads[layer, lost]):
            share = np.append(loads[layer] / np.maximum(copies, 1), 0.0)  # the last stands for an empty slot
            rank_load = share[slots].sum(axis=1)
            # what a rank would carry after it, and what the copies that stay would carry more
            free = (slots == EMPTY) | (copies[slots] > 1)
            if not free.any():
                return None
            more = share[slots] / np.maximum(copies[slots] - 1, 1)
            cost = np.where(free, np.maximum(rank_load[:, None] - share[slots], more), np.inf)
            rank, slot = np.unravel_index(int(cost.argmin()), cost.shape)
            if slots[rank, slot] != EMPTY:
                copies[slots[rank, slot]] -= 1
            slots[rank, slot] = expert
            copies[expert] += 1
    return Placement(experts, total)


def standing(
    running: Placement | ArrayLike, batches: Batches, costs: Costs, slots_per_rank: int
) -> tuple[Placement, Move | None]:
    """Return what runs as a placement, and what it takes to get there where experts are nowhere since ranks were lost.

    Those are restored in the slots that there are, or else in those of a plan.

    Parameters
    ----------
    running
        Placement that runs, or its experts [layers, ranks, slots], of which some may be nowhere.
    batches
        Traffic: the experts with most of it are restored first.
    slots_per_rank
        Slots of a plan.

    Raises
    ------
    InputError
        If it is for another model or other ranks.
    Infeasible
        If the slots do not hold all experts, or a rank has no room to receive one.
    """
    spec, cluster = costs.spec, costs.cluster
    if isinstance(running, Placement):
        return running, None
    own = np.asarray(running)
    slots = max(slots_per_rank, own.shape[2] if own.ndim == 3 else 0)
    wide = running_experts(own, spec, cluster, slots)
    if holders(wide, spec.experts).any(axis=2).all():
        return Placement(own, spec.experts), None
    loads = count_loads(batches)
    for experts in (wide[:, :, : own.shape[2]], wide):
        whole = restored(experts, loads)
        if whole is not None:
            return whole, price(steps_of_move(experts, whole, spec, cluster), cluster, spec.expert_bytes)
    raise Infeasible(
        f"previous placement: {count(slots, 'slot')} on each rank of {cluster.ranks} that stay cannot hold the "
        f"{spec.experts} experts; give at least {count(-(-spec.experts // cluster.ranks), 'slot')} a rank"
    )


def restored_note(move: Move) -> str:
    """Return what a reader must know of a placement in which lost experts had to be restored."""
    lost = count(move.stored, "expert")
    return f"{lost} that only lost ranks held had to come back, in the fewest moves: {show(move.seconds, 'time')}"


def without_ranks(batches: Batches, dead: Array) -> Batches:
    """Return the steps on the ranks that are left, numbered anew; the tokens of the others are dealt out in turn."""
    alive = np.setdiff1d(np.arange(batches.ranks), dead)
    number = np.full(batches.ranks, -1)
    number[alive] = np.arange(len(alive))
    home = number[batches.home]
    lost = np.flatnonzero(home < 0)
    home[lost] = np.arange(len(lost)) % len(alive)
    return dataclasses.replace(batches, home=home.astype(np.int32), ranks=len(alive), tokens_per_rank=None)


def costs_on(costs: Costs, cluster: Cluster) -> Costs:
    """Return the same cost models on a part of the cluster.

    Raises
    ------
    InputError
        If the ranks that shared attention are no longer whole groups.
    """
    return Costs.default(
        costs.spec, cluster, costs.transport, costs.network, costs.compute_name, costs.shared_expert,
        attention_tp=costs.attention_tp,
    )  # fmt: skip


def survivors(whole: Cluster, left: Cluster, ranks: int) -> Array:
    """Return which of the first ``ranks`` ranks of a cluster are the ranks of what is left of it, int64 [left ranks].

    Raises
    ------
    InputError
        If what is left is not a part of them.
    """
    number = {name: rank for rank, name in enumerate(whole.rank_names[:ranks])}
    names = left.rank_names
    if ranks > whole.ranks or any(name not in number for name in names):
        raise InputError(
            f"previous placement: is for {count(ranks, 'rank')}, of which {left.ranks} should be left; give the "
            f"placement of cluster {whole.name} before anything was taken away, or of what is left"
        )
    return np.array([number[name] for name in names])
