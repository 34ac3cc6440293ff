"""What most verbs begin with: traffic, where it runs, at whose dimensions; and the steps and prices that follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from moesim.base.errors import InputError
from moesim.cli import load, pieces
from moesim.cli.options import DEFAULT_FIT, DEFAULT_POLICY

if TYPE_CHECKING:
    from moesim.cluster import Cluster
    from moesim.costs import Costs
    from moesim.placement import Placement
    from moesim.solve import Plan
    from moesim.spec import ModelSpec
    from moesim.trace import Batches, Trace


@dataclass(frozen=True)
class Inputs:
    """Traffic, where it runs, and at whose dimensions.

    Parameters
    ----------
    routing
        The trace.
    group
        Ranks of the expert-parallel group, as edited.
    dims
        Model at whose dimensions the routing is replayed; None: its own.
    whole
        The cluster before parts were taken away; None where none were.
    """

    routing: Trace
    group: Cluster
    dims: ModelSpec | None
    whole: Cluster | None = None

    @property
    def priced(self) -> ModelSpec:
        """The model of the trace, at the dimensions that bytes and seconds are of."""
        return self.routing.spec if self.dims is None else self.routing.spec.at_dimensions(self.dims)

    def slots(self, given: int | None) -> int:
        """Return the slots a rank, see :func:`moesim.cli.load.slots`."""
        return load.slots(given, self.routing, self.group)

    def plan(self, path: Path) -> Plan | Placement:
        """Read a plan or placement of this model and group.

        Raises
        ------
        FormatError
            If the file is neither.
        """
        return load.plan_or_placement(path, ranks=self.group.ranks, spec=self.routing.spec)

    def running(self, path: Path | None) -> tuple[Any, Mapping[str, Any] | None]:
        """Return the placement that runs, None where no file was named, and the inputs of its plan where it is of one.

        A placement of the whole cluster is cut down to the experts, int [layers, ranks, slots], of the ranks that are
        left; those that only lost ranks held are then nowhere.

        Raises
        ------
        FormatError
            If the file is no plan or placement.
        InputError
            If the placement is of neither the whole cluster nor what is left of it.
        """
        if path is None:
            return None, None
        group = self.whole or self.group
        source = load.plan_or_placement(path, ranks=group.ranks, spec=self.routing.spec)
        found, made_on = load.placement_of(source), getattr(source, "inputs", None)
        if self.whole is None or found.ranks == self.group.ranks:
            return found, made_on
        from moesim.solve.survival import survivors

        return found.experts[:, survivors(self.whole, self.group, found.ranks)], made_on

    def steps(
        self,
        *,
        part: str,
        fit: float | None,
        tokens_per_rank: int | None,
        phase: str | None,
        max_steps: int | None,
        seed: int,
    ) -> Batches:
        """Return the steps of a part of the trace, as `compare` takes them."""
        from moesim.study import part_of, steps_of

        window = part_of(self.routing, part, fit=_fraction(part, fit), seed=seed)
        return steps_of(
            window, self.group, tokens_per_rank=tokens_per_rank, phase=phase, max_steps=max_steps, seed=seed
        )

    def windows(
        self,
        way: str,
        *,
        part: str,
        fit: float | None,
        tokens_per_rank: int | None,
        phase: str | None,
        max_steps: int | None,
        seed: int,
    ) -> tuple[Batches, ...]:
        """Return the steps of a part of the trace in windows: runs in time, or one window a domain."""
        from moesim.solve.windows import check_way, domain_windows, time_windows
        from moesim.study import part_of

        check_way(way)
        how: dict[str, Any] = {
            "tokens_per_rank": tokens_per_rank, "phase": phase, "max_steps": max_steps, "seed": seed,
        }  # fmt: skip
        if way == "domain":
            window = part_of(self.routing, part, fit=_fraction(part, fit), seed=seed)
            return domain_windows(window, self.group.ranks, **how)
        return time_windows(self.steps(part=part, fit=fit, **how))

    def costs(self, batches: Batches, *, transport: str | None, network: str, compute: str) -> Costs:
        """Return what turns the counts of these steps into seconds."""
        from moesim.study import costs_of

        return costs_of(batches, self.group, dims=self.dims, transport=transport, network=network, compute=compute)


def _fraction(part: str, fit: float | None) -> float:
    """Return the fraction that plans are fitted on; refuse one that would change nothing."""
    if part == "all" and fit is not None:
        raise InputError("--fit: all of the trace is taken, so it changes nothing; give --part fit or --part held-out")
    return DEFAULT_FIT if fit is None else fit


def read(
    trace: Path,
    topology: str,
    *,
    format: str | None,
    model: str | None,
    format_option: Sequence[str] | None,
    ranks: int | None = None,
    set: Sequence[str] | None = None,
    without: Sequence[str] | None = None,
    degrade: Sequence[str] | None = None,
    like: str | None = None,
    dims: str | None = None,
    head: bool = False,
) -> Inputs:
    """Read what the options of the same names say: the quick things first, so that their errors come at once.

    Parameters
    ----------
    head
        Whether to read of the trace the first token alone, which tells the model.

    Raises
    ------
    InputError
        If a file or an option is not what was expected, or the head of the trace holds counts only.
    UnknownName
        If there is no such topology or model.
    """
    from moesim.trace.checks import need_routes

    group = load.group(topology, ranks, set, without, like, degrade)
    whole = load.cluster(topology, set, None, like) if without else None
    other = load.dims(dims)
    routing = pieces.head(trace) if head else load.tokens(trace, format, model, format_option)
    need_routes(routing.routes, str(trace))
    return Inputs(routing, group, other, whole)


class Manner(NamedTuple):
    """How a plan runs: dispatch policy, transport (None: by phase), and notes on where these are from."""

    policy: str
    transport: str | None
    notes: tuple[str, ...]


def manner(judged: Plan | Placement, policy: str | None, transport: str | None) -> Manner:
    """Return how a plan runs: as was asked for, else as it was planned for; a placement does not say.

    Parameters
    ----------
    judged
        The plan or placement.
    policy, transport
        What was asked for, None where nothing was.
    """
    planned = {name: getattr(judged, name, None) for name in ("policy", "transport")}
    asked = {"policy": policy, "transport": transport}
    taken = [f"{name} {value}" for name, value in planned.items() if value is not None and asked[name] is None]
    notes = [f"{' and '.join(taken)}: the plan's"] if taken else []
    notes += [
        f"{name} {asked[name]} was asked for; the plan was made for {value}"
        for name, value in planned.items()
        if asked[name] is not None and value not in (None, asked[name])
    ]
    return Manner(policy or planned["policy"] or DEFAULT_POLICY, transport or planned["transport"], tuple(notes))
