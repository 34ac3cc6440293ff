"""How a plan fares by domain: a placement that is fast on the mean may be slow for the traffic of one customer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.base.errors import InputError
from moesim.base.units import count
from moesim.cluster import Cluster
from moesim.costs import Costs
from moesim.simulate import simulate
from moesim.solve import Plan
from moesim.spec import ModelSpec
from moesim.study.windows import steps_of
from moesim.trace import PHASES, Batches


@dataclass(frozen=True)
class DomainSpread:
    """A plan on steps that hold traffic of one domain alone.

    Parameters
    ----------
    domain
        Name of the domain.
    step_s
        Mean seconds of a step.
    batch_imbalance
        Max over mean tokens of a rank, mean over steps and layers.
    steps, tokens_per_rank
        Number and size of the steps, the same size for all domains.
    """

    domain: str
    step_s: float
    batch_imbalance: float
    steps: int
    tokens_per_rank: int


def by_domain(
    plan: Plan,
    judged: Batches,
    cluster: Cluster,
    costs: Costs,
    *,
    dims: ModelSpec | None = None,
    most_steps: int = 4,
    least_tokens: int = 1,
    seed: int = 0,
) -> tuple[DomainSpread, ...]:
    """Return how a plan fares on each domain of the held-out traffic alone, in the order of the trace.

    Steps of one domain are as large as the smallest domain fills, at most those of ``judged``, so that domains can be
    compared with one another, not with the mixed steps. Domains that do not fill a step of ``least_tokens`` tokens a
    rank are left out.

    Raises
    ------
    InputError
        If that leaves fewer than two domains.
    """
    trace = judged.trace
    phase = int(judged.phase[0])
    rows = {name: np.flatnonzero((trace.domain == code) & (trace.phase == phase))
            for code, name in enumerate(trace.domains)}  # fmt: skip
    rows = {name: index for name, index in rows.items() if len(index) >= cluster.ranks * least_tokens}
    if len(rows) < 2:
        raise InputError(
            f"spread by domain: the held-out traffic has {count(len(rows), 'domain')} with "
            f"{count(least_tokens, 'token')} for each of {count(cluster.ranks, 'rank')}; give a trace that labels two"
        )
    whole = judged.tokens_per_rank or len(judged.token) // (len(judged) * cluster.ranks)
    size = max(1, min(whole, *(len(index) // cluster.ranks for index in rows.values())))
    costs = costs if plan.transport == costs.transport else costs.with_transport(plan.transport)
    found = []
    for name, index in rows.items():
        steps = steps_of(
            trace.select(index), cluster, tokens_per_rank=size, phase=PHASES[phase], max_steps=most_steps, seed=seed
        )
        report = simulate(steps, cluster, plan, dims=dims, costs=costs, engine="closed-form", seed=seed)
        found.append(DomainSpread(name, report.mean_step_s, report.batch_imbalance, len(steps), size))
    return tuple(found)
