"""Which part of a trace is looked at, and the steps it becomes: the same for compare, solve and simulate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from moesim.base.arrays import Array
from moesim.base.errors import InputError, TooShort, UnknownName
from moesim.base.units import count
from moesim.cluster import Cluster
from moesim.costs import Costs
from moesim.spec import ModelSpec
from moesim.trace import DECODE, PHASES, Batches, Trace, make_batches
from moesim.trace.checks import need_routes

PARTS: Final = ("all", "fit", "held-out")
"""Parts of a trace: all of it, what plans are fitted on, what they are judged on."""


def part_of(trace: Trace, part: str, *, fit: float = 0.5, seed: int = 0) -> Trace:
    """Return a part of a trace; the same fraction and seed give the same parts everywhere.

    Parameters
    ----------
    trace
        The trace.
    part
        One of `PARTS`.
    fit
        Fraction of the steps (or requests, where steps were not recorded) that plans are fitted on.
    seed
        Deals requests to the parts where steps were not recorded.

    Raises
    ------
    UnknownName
        If there is no such part.
    InputError
        If the trace holds counts only or is too short to be split, or the fraction is not between 0 and 1.
    """
    if part not in PARTS:
        raise UnknownName("part of a trace", part, PARTS)
    # counts can be split too, but no step comes of either part: say so at once
    need_routes(trace.routes, f"part {part!r}")
    if part == "all":
        return trace
    fitted, held_out = trace.split(fit, seed=seed)
    return fitted if part == "fit" else held_out


def parts_of(trace: Trace, held_out: Trace | None, *, fit: float = 0.5, seed: int = 0) -> tuple[Trace, Trace]:
    """Return what plans are fitted on and what they are judged on.

    Parameters
    ----------
    held_out
        Other traffic of the same model to judge on; None divides the trace, see :func:`part_of`.

    Raises
    ------
    InputError
        If the other traffic is of another model, or is the trace itself.
    """
    if held_out is None:
        return part_of(trace, "fit", fit=fit, seed=seed), part_of(trace, "held-out", fit=fit, seed=seed)
    ours, theirs = trace.spec, held_out.spec
    if (ours.layers, ours.experts, ours.top_k) != (theirs.layers, theirs.experts, theirs.top_k):
        raise InputError(
            f"the traces are of different models: {ours.name} ({count(ours.layers, 'layer')}, "
            f"{count(ours.experts, 'expert')}, top {ours.top_k}) and {theirs.name} ({theirs.layers}, "
            f"{theirs.experts}, {theirs.top_k}); judge on traffic of the same model"
        )
    if trace.digest == held_out.digest:
        raise InputError("the held-out trace is the fit trace itself; give other traffic, or a fraction")
    return trace, held_out


def steps_of(
    trace: Trace,
    cluster: Cluster,
    *,
    tokens_per_rank: int | Mapping[int, int] | None = None,
    phase: str | None = None,
    max_steps: int | None = None,
    seed: int = 0,
) -> Batches:
    """Return the steps in which a trace runs on a cluster, at least one.

    Where the trace holds several phases and none is chosen, it is the first of prefill, decode and train: a step of
    one phase says nothing about the other, and their mean belongs to neither.

    Raises
    ------
    InputError
        If no step comes of it.
    """
    codes = np.unique(trace.phase)
    if phase is None and len(codes):
        phase = PHASES[int(codes[0])]
    batches = make_batches(
        trace, cluster.ranks, tokens_per_rank=tokens_per_rank, phase=phase, seed=seed, max_steps=max_steps
    )
    if not len(batches):
        raise TooShort(
            f"trace of {trace.spec.name}: no step of {count(cluster.ranks, 'rank')} comes of its "
            f"{count(trace.tokens, 'token')}",
            "give a longer trace or fewer tokens per rank",
        )
    return batches


def steps_of_parts(
    fit: Trace, held_out: Trace, cluster: Cluster, *, phase: str | None = None, **size: Any
) -> tuple[Batches, Batches]:
    """Return the steps that plans are fitted on and those they are judged on, of one phase.

    Parameters
    ----------
    phase
        Default: the first of prefill, decode and train that both parts hold.
    size
        As in :func:`steps_of`.

    Raises
    ------
    InputError
        If the parts hold no phase in common, or no step comes of one of them.
    """
    if phase is None:
        ours, theirs = np.unique(fit.phase), np.unique(held_out.phase)
        both = np.intersect1d(ours, theirs)
        if len(ours) and len(theirs) and not len(both):
            # a trace in which all prompts ran before the first answer, cut in time, is such a one
            raise InputError(
                f"plans would be fitted on {_phases(ours)} and judged on {_phases(theirs)}, and a step of one phase "
                "says nothing about the other; cut the trace elsewhere (another fraction to fit on), or judge on "
                "other traffic of the same phase"
            )
        phase = PHASES[int(both[0])] if len(both) else None
    fitted, judged = (steps_of(part, cluster, phase=phase, **size) for part in (fit, held_out))
    return fitted, judged


def part_notes(fitted: Batches, judged: Batches) -> list[str]:
    """Return the notes of both parts' steps, each with the part that it is of."""
    return [f"fit steps {note}" for note in fitted.notes] + [f"held-out steps {note}" for note in judged.notes]


def _phases(codes: Array) -> str:
    return " and ".join(PHASES[int(code)] for code in codes)


def costs_of(
    batches: Batches,
    cluster: Cluster,
    *,
    dims: ModelSpec | None = None,
    transport: str | None = None,
    network: str = "bottleneck",
    compute: str = "roofline",
    attention_tp: int = 1,
) -> Costs:
    """Return what turns the counts of these steps into seconds.

    Parameters
    ----------
    dims
        Model at whose dimensions the routing is replayed; default its own.
    transport
        Default: ``direct`` in decode and ``hierarchical`` otherwise, as serving engines do.
    network, compute
        Names of models; ``compute`` may be the path of a kernel cost table.
    attention_tp
        Ranks that share attention.
    """
    return costs_in(
        int(batches.phase[0]), batches.trace.spec, cluster, dims=dims, transport=transport, network=network,
        compute=compute, attention_tp=attention_tp,
    )  # fmt: skip


def costs_in(
    phase: int,
    spec: ModelSpec,
    cluster: Cluster,
    *,
    dims: ModelSpec | None = None,
    transport: str | None = None,
    network: str = "bottleneck",
    compute: str = "roofline",
    attention_tp: int = 1,
) -> Costs:
    """Return the same of steps of one phase, by its code, of a model."""
    priced = spec if dims is None else spec.at_dimensions(dims)
    return Costs.default(
        priced, cluster, transport=transport, network=network, compute=compute, decode=phase == DECODE,
        attention_tp=attention_tp,
    )  # fmt: skip


def fewest_slots(experts: int, ranks: int) -> int:
    """Return the fewest slots a rank that hold every expert."""
    return -(-experts // ranks)
