"""The objective: seconds of every step under a placement, by dispatch and the closed form of the costs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from moesim.base.arrays import Array, Sealed, seal
from moesim.base.errors import InputError, UnknownName
from moesim.costs import Costs, Timing, step_time
from moesim.costs.closed_form import layer_clocks
from moesim.placement import Flow, Placement, dispatch, table_of
from moesim.trace import DECODE
from moesim.trace.batching import Batches

AIMS: Final = ("time", "traffic", "load")
"""What a placement is judged by: the whole step, its dispatch and combine alone, its experts alone."""
RISKS: Final = ("mean", "cvar")
"""How windows of the traffic are put together."""
MOST_UNSEEN: Final = 0.9
"""Largest share of unseen traffic in what a search balances."""
_MATRIX_ELEMENTS: Final = 2e8
"""Most elements of rank-by-rank matrices that steps which are scored at a time may hold."""


@dataclass(frozen=True)
class Objective:
    """What a plan is to make small.

    Parameters
    ----------
    aim
        ``"time"``: seconds of a step. ``"traffic"``: seconds of dispatch and combine alone. ``"load"``: seconds of the
        slowest rank's experts alone.
    risk
        ``"mean"`` over windows, or ``"cvar"``: the mean of the worst windows (conditional value at risk).
    worst
        Share of the windows that CVaR averages.
    unseen
        Share of what balance is averaged over, in a search, that is traffic of kinds which the trace does not hold:
        popularity is dealt anew among the experts. None: see :meth:`unseen_share`.

    Raises
    ------
    UnknownName
        If there is no such aim or risk.
    InputError
        If a share is not between 0 and 1.
    """

    aim: Literal["time", "traffic", "load"] = "time"
    risk: Literal["mean", "cvar"] = "mean"
    worst: float = 0.25
    unseen: float | None = None

    def __post_init__(self) -> None:
        if self.aim not in AIMS:
            raise UnknownName("aim", self.aim, AIMS)
        if self.risk not in RISKS:
            raise UnknownName("risk", self.risk, RISKS)
        if not 0 < self.worst <= 1:
            raise InputError(f"objective: worst: expected a share above 0 and at most 1, got {self.worst}")
        if self.unseen is not None and not 0 <= self.unseen <= MOST_UNSEEN:
            raise InputError(f"objective: unseen: expected a share of 0 to {MOST_UNSEEN}, got {self.unseen}")

    def unseen_share(self, domains: int, named: int) -> float:
        """Return the share of unseen traffic, given the domains that are fitted and those that the trace names.

        By default there is some where load alone counts and the trace tells kinds of traffic apart: after n kinds the
        next is taken to be a new one with probability 1 / (n + 1), as in a Chinese restaurant process.
        """
        if self.unseen is not None:
            return self.unseen
        return 1 / (domains + 1) if self.aim == "load" and named > 1 else 0.0

    def windows(self, count: int) -> int:
        """Return how many of ``count`` windows a search averages, 0: all."""
        return math.ceil(self.worst * count) if self.risk == "cvar" else 0

    def value(self, score: Score) -> float:
        """Return the objective of a whole placement, seconds."""
        steps = score.step_s if self.aim == "time" else self._layers(score).sum(axis=1)
        return float(self._put_together(steps[:, None], score.window)[0])

    def layer_values(self, score: Score) -> Array:
        """Return the objective of each layer on its own, seconds, float64 [layers]."""
        return self._put_together(self._layers(score), score.window)

    def _layers(self, score: Score) -> Array:
        return {"time": score.layer_s, "traffic": score.traffic_s, "load": score.load_s}[self.aim]

    def _put_together(self, values: Array, window: Array) -> Array:
        """Return the mean or the tail mean over windows of [steps, columns]."""
        if self.risk == "mean":
            return np.asarray(values.mean(axis=0))
        groups, group = np.unique(window, return_inverse=True)
        means = np.zeros((len(groups), values.shape[1]))
        np.add.at(means, group, values)
        means /= np.bincount(group)[:, None]
        # the tail may end inside a window, which then counts in part (Rockafellar and Uryasev 2002)
        part = np.clip(self.worst * len(groups) - np.arange(len(groups)), 0, 1)
        return np.asarray((np.sort(means, axis=0)[::-1] * part[:, None]).sum(axis=0) / part.sum())

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        found: dict[str, Any] = {"aim": self.aim, "risk": self.risk}
        if self.risk == "cvar":
            found["worst"] = self.worst
        if self.unseen is not None:
            found["unseen"] = self.unseen
        return found


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
    traffic_s, load_s
        Seconds of dispatch and combine alone, and of the slowest rank's experts alone; float64 [steps, layers].
    window
        Window of each step, int64 [steps].
    outside_s
        Seconds of each step outside the MoE layers, whatever the placement (the slowest rank's); float64 [steps].
    stands_for
        Layers of the model for each of these, see :attr:`moesim.spec.ModelSpec.stands_for`.
    """

    step_s: Array
    layer_s: Array
    balance: Array
    traffic_s: Array
    load_s: Array
    window: Array
    outside_s: Array
    stands_for: float = 1.0

    def __post_init__(self) -> None:
        seal(self, "step_s", self.step_s, np.float64, ("steps",))
        seal(self, "layer_s", self.layer_s, np.float64, ("steps", "layers"), {"steps": len(self.step_s)})
        shape = dict(zip(("steps", "layers"), self.layer_s.shape, strict=True))
        for name in ("balance", "traffic_s", "load_s"):
            seal(self, name, getattr(self, name), np.float64, ("steps", "layers"), shape)
        seal(self, "window", self.window, np.int64, ("steps",), shape)
        seal(self, "outside_s", self.outside_s, np.float64, ("steps",), shape)

    @property
    def mean_s(self) -> float:
        """Mean seconds of a step."""
        return float(self.step_s.mean())

    @property
    def model_step_s(self) -> float:
        """Mean seconds of a step of the whole model: every layer, and what is outside the MoE layers."""
        return float(self.mean_s * self.stands_for + self.outside_s.mean())


@dataclass(frozen=True, eq=False)
class Fixed:
    """What a step costs whatever the placement, float64 [ranks].

    Tokens of each rank, its attention and shared experts in a layer, and what it does outside the MoE layers.
    """

    tokens: Array
    attention_s: Array
    shared_s: Array
    outside_s: Array


def fixed_parts(batches: Batches, step: int, costs: Costs) -> Fixed:
    """Return the parts of a step that no placement changes."""
    home, ranks = batches.homes(step), batches.ranks
    tokens = np.bincount(home, minlength=ranks).astype(np.float64)
    # a token attends to itself and to all before it
    context = np.bincount(home, weights=batches.positions(step) + 1.0, minlength=ranks)
    decode = int(batches.phase[step]) == DECODE
    logits = np.bincount(home, weights=batches.answered(step), minlength=ranks)
    attention_s = costs.attention_s(tokens, context, decode)
    return Fixed(tokens, attention_s, costs.shared_s(tokens), costs.outside_s(attention_s, tokens, logits))


def step_flow(
    batches: Batches,
    step: int,
    placement: Placement,
    costs: Costs,
    policy: str,
    seed: int = 0,
    table: Array | None = None,
) -> Flow:
    """Return where the tokens of a step go; ``table`` is that of a table policy, where it is made already."""
    cluster = costs.cluster
    return dispatch(
        batches.routes(step), batches.homes(step), placement, cluster.node, cluster.landing, policy=policy, table=table,
        seed=seed,
    )  # fmt: skip


def score(
    batches: Batches | Sequence[Batches],
    placement: Placement,
    costs: Costs,
    policy: str = "nearest",
    seed: int = 0,
    jobs: int = 1,
) -> Score:
    """Return the seconds of every step under a placement.

    Parameters
    ----------
    batches
        Steps, or windows of them.
    policy, seed
        Dispatch policy, and the seed of policies that draw.
    jobs
        Threads that steps are shared among; fewer where the matrices of so many steps would be large.
    """
    windows = [batches] if isinstance(batches, Batches) else batches
    numbers = np.repeat(np.arange(len(windows)), [len(window) for window in windows])
    table = table_of(policy, placement, costs.cluster.node)

    def one(each: tuple[Batches, int]) -> tuple[float, Array, Array, Array, Array, float]:
        window, step = each
        flow = step_flow(window, step, placement, costs, policy, seed, table)
        fixed = fixed_parts(window, step, costs)
        sent, back = costs.dispatch(flow), costs.combine(flow)
        experts = costs.experts_s(flow.slot_tokens)
        overlap = costs.shared_expert == "overlap"
        return (
            step_time(fixed.attention_s, sent, experts, back, fixed.shared_s, overlap=overlap),
            layers_alone(fixed, sent, experts, back, overlap),
            load_balance(flow),
            sent.makespan_s + back.makespan_s,
            experts.max(axis=1),
            fixed.outside_s.max(),
        )

    room = int(_MATRIX_ELEMENTS / (placement.layers * placement.ranks**2))
    threads = max(1, min(jobs, len(numbers), room))
    with ThreadPoolExecutor(threads) as pool:
        steps = list((map if threads == 1 else pool.map)(one, every_step(windows)))
    step_s, layer_s, balance, traffic_s, load_s, outside_s = (np.array(part) for part in zip(*steps, strict=True))
    return Score(step_s, layer_s, balance, traffic_s, load_s, numbers, outside_s, costs.spec.stands_for)


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
