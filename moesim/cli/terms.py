"""Options about what a plan is to make small, what it must respect, and what it may move."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.base.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moesim.cluster import Cluster
    from moesim.solve import Constraints, Objective, Plan
    from moesim.spec import ModelSpec

_AIM, _KEEP, _MOVE = "What to make small", "What to respect", "What to move"

Aim = Annotated[
    str,
    typer.Option("--objective", metavar="NAME", help="time, or traffic or load alone.", rich_help_panel=_AIM),
]
Risk = Annotated[
    str,
    typer.Option(metavar="NAME", help="Over windows: mean, or cvar, the mean of the worst.", rich_help_panel=_AIM),
]
Worst = Annotated[
    float, typer.Option(metavar="SHARE", help="Share of the windows that cvar averages.", rich_help_panel=_AIM)
]
Unseen = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        help="Share of traffic of kinds that the trace does not hold in what the search balances. Default: with "
        "--objective load 1 / (domains + 1) if there are several, else 0.",
        rich_help_panel=_AIM,
    ),
]
Windows = Annotated[
    str, typer.Option(metavar="NAME", help="Windows: runs in time, or one a domain.", rich_help_panel=_AIM)
]
RankSlots = Annotated[
    str | None,
    typer.Option(
        metavar="N,N,...|memory",
        help="Slots that each rank may fill, up to --slots-per-rank; memory: as many as fit each GPU.",
        rich_help_panel=_KEEP,
    ),
]
SlotBudget = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Slots of a rank over all layers: more copies in layers where they pay.",
        rich_help_panel=_KEEP,
    ),
]  # fmt: skip
Hot = Annotated[
    int,
    typer.Option(metavar="N", help="Keep the N most loaded experts of each layer on several nodes.",
                 rich_help_panel=_KEEP),
]  # fmt: skip
HotNodes = Annotated[int, typer.Option(metavar="N", help="How many nodes that is.", rich_help_panel=_KEEP)]
HotMode = Annotated[
    str,
    typer.Option(metavar="NAME", help="hard: a condition; soft: --hot-price for each that is not.",
                 rich_help_panel=_KEEP),
]  # fmt: skip
HotPrice = Annotated[
    float, typer.Option(metavar="SHARE", help="Price, as a share of the layer's time.", rich_help_panel=_KEEP)
]
Previous = Annotated[
    Path | None,
    typer.Option(metavar="PLAN", help="Plan or placement that runs now, from which to move.", rich_help_panel=_MOVE),
]
MostMoves = Annotated[
    int | None,
    typer.Option(metavar="N", help="Experts that may be received in a layer.", rich_help_panel=_MOVE),
]
MostBytes = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help='The same in bytes, "500 MB".', rich_help_panel=_MOVE),
]
Horizon = Annotated[
    str | None,
    typer.Option(
        metavar="TIME", help='Move only layers where that pays off within "10 min" of serving.', rich_help_panel=_MOVE
    ),
]
ScheduleFile = Annotated[
    Path | None,
    typer.Option("--migration", metavar="FILE", help="Write the migration schedule here.", rich_help_panel=_MOVE),
]


def objective(aim: str, risk: str = "mean", worst: float = 0.25, unseen: float | None = None) -> Objective:
    """Return the objective that was asked for."""
    from moesim.solve import Objective

    return Objective(aim, risk, worst, unseen)  # type: ignore[arg-type]  # checked at birth


def constraints(
    cluster: Cluster,
    spec: ModelSpec,
    slots: int,
    *,
    rank_slots: str | None,
    slot_budget: int | None,
    hot: int,
    hot_nodes: int,
    hot_mode: str,
    hot_price: float,
    most_moves: int | None,
    most_bytes: str | None,
) -> Constraints:
    """Return the constraints that were asked for.

    Raises
    ------
    InputError
        If one is not of its form.
    """
    from moesim.base.units import parse
    from moesim.solve import Constraints

    return Constraints(
        rank_slots=None if rank_slots is None else _slots_of(rank_slots, cluster, spec, slots),
        slot_budget=slot_budget,
        most_moves=most_moves,
        most_bytes=None if most_bytes is None else parse(most_bytes, "bytes", "--most-bytes"),
        hot=hot,
        hot_nodes=hot_nodes,
        mode=hot_mode,  # type: ignore[arg-type]  # checked at birth
        hot_price=hot_price,
    )


def _slots_of(text: str, cluster: Cluster, spec: ModelSpec, slots: int) -> tuple[int, ...]:
    if text == "memory":
        from moesim.solve.memory import slots_that_fit

        return tuple(min(int(count), slots) for count in slots_that_fit(spec, cluster))
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--rank-slots: expected numbers such as 4,4,3,3 or 'memory', got {text!r}") from None


def seconds(horizon: str | None) -> float | None:
    """Return the horizon in seconds, None where none was given."""
    from moesim.base.units import parse

    return None if horizon is None else parse(horizon, "time", "--horizon")


def write_move(plan: Plan, running: Any, cluster: Cluster, path: Path, spec: ModelSpec) -> None:
    """Write the migration schedule from what runs, a placement or its experts, to a plan."""
    from moesim.placement import Placement
    from moesim.placement.formats.schedule import write_schedule
    from moesim.solve.budget import widened
    from moesim.solve.terms import steps_of_move

    experts = running.experts if isinstance(running, Placement) else running
    experts = widened(experts, plan.placement.slots_per_rank)
    write_schedule(steps_of_move(experts, plan.placement, spec, cluster), path)


def terms_facts(terms: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was asked beside speed and what came of it, where it is worth a line."""
    found: dict[str, Any] = {}
    plain = {"aim": "time", "risk": "mean"}
    if any(terms.get("objective", plain).get(key) != value for key, value in plain.items()):
        found["objective"] = terms["objective"]
    for key in ("worst_window_s", "hot_spread", "constraints", "migration"):
        if terms.get(key):
            found[key] = terms[key]
    return found
