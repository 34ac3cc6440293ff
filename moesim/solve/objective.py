"""The objective: seconds of every step under a placement, by dispatch and the closed form of the costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from moesim.base.arrays import Array, Sealed, seal
from moesim.costs import Costs, Timing, step_time
from moesim.costs.closed_form import layer_clocks
from moesim.placement import Flow, Placement, dispatch
from moesim.trace import DECODE
from moesim.trace.batching import Batches


@dataclass(frozen=True, eq=False)
class Score(Sealed):
    """Seconds of every step, fitted traffic or not.

    Parameters
    ----------
    step_s
        Seconds of each step, all layers, stragglers carried from layer to layer; float64 [steps].
    layer_s
        Seconds of each layer on its own, all ranks entering it together; float64 [steps, layers].
    balance
        Mean over largest load of a rank, float64 [steps, layers]; 1 where there is no load.
    """

    step_s: Array
    layer_s: Array
    balance: Array

    def __post_init__(self) -> None:
        seal(self, "step_s", self.step_s, np.float64, ("steps",))
        seal(self, "layer_s", self.layer_s, np.float64, ("steps", "layers"), {"steps": len(self.step_s)})
        shape = dict(zip(("steps", "layers"), self.layer_s.shape, strict=True))
        seal(self, "balance", self.balance, np.float64, ("steps", "layers"), shape)

    @property
    def mean_s(self) -> float:
        """Mean seconds of a step."""
        return float(self.step_s.mean())


@dataclass(frozen=True, eq=False)
class Fixed:
    """What a step costs whatever the placement: tokens, attention and shared experts of each rank, float64 [ranks]."""

    tokens: Array
    attention_s: Array
    shared_s: Array


def fixed_parts(batches: Batches, step: int, costs: Costs) -> Fixed:
    """Return the parts of a step that no placement changes."""
    home, ranks = batches.homes(step), batches.ranks
    tokens = np.bincount(home, minlength=ranks).astype(np.float64)
    # a token attends to itself and to all before it
    context = np.bincount(home, weights=batches.positions(step) + 1.0, minlength=ranks)
    decode = int(batches.phase[step]) == DECODE
    return Fixed(tokens, costs.attention_s(tokens, context, decode), costs.shared_s(tokens))


def step_flow(batches: Batches, step: int, placement: Placement, costs: Costs, policy: str, seed: int = 0) -> Flow:
    """Return where the tokens of a step go."""
    cluster = costs.cluster
    return dispatch(
        batches.routes(step), batches.homes(step), placement, cluster.node, cluster.landing, policy=policy, seed=seed
    )


def score(
    batches: Batches | Sequence[Batches], placement: Placement, costs: Costs, policy: str = "nearest", seed: int = 0
) -> Score:
    """Return the seconds of every step under a placement.

    Parameters
    ----------
    batches
        Steps, or windows of them.
    policy, seed
        Dispatch policy, and the seed of policies that draw.
    """
    step_s, layer_s, balance = [], [], []
    for window, step in every_step(batches):
        flow = step_flow(window, step, placement, costs, policy, seed)
        fixed = fixed_parts(window, step, costs)
        sent, back = costs.dispatch(flow), costs.combine(flow)
        experts = costs.experts_s(flow.slot_tokens)
        overlap = costs.shared_expert == "overlap"
        step_s.append(step_time(fixed.attention_s, sent, experts, back, fixed.shared_s, overlap=overlap))
        layer_s.append(layers_alone(fixed, sent, experts, back, overlap))
        balance.append(load_balance(flow))
    return Score(np.array(step_s), np.array(layer_s), np.array(balance))


def load_balance(flow: Flow) -> Array:
    """Return mean over largest load of a rank, float64 [layers]; 1 where there is no load."""
    load = flow.slot_tokens.sum(axis=2)
    most = load.max(axis=1)
    return np.where(most > 0, load.mean(axis=1) / np.maximum(most, 1e-300), 1.0)


def layers_alone(fixed: Fixed, sent: Timing, experts: Array, back: Timing, overlap: bool) -> Array:
    """Return the seconds of each layer when all ranks enter it together, float64 [layers]."""
    start = np.zeros(len(fixed.tokens))
    return np.array(
        [
            layer_clocks(
                start, fixed.attention_s, sent, experts[layer], back, fixed.shared_s, layer=layer, overlap=overlap
            ).home.max()
            for layer in range(len(experts))
        ]
    )


def every_step(batches: Batches | Sequence[Batches]) -> Iterator[tuple[Batches, int]]:
    """Yield (window, number of the step in it)."""
    for window in [batches] if isinstance(batches, Batches) else batches:
        for step in range(len(window)):
            yield window, step
