"""The verb rebalance: how often to plan anew, and whether it is worth it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moesim.base.units import count, show
from moesim.cli import load, screen
from moesim.cli import options as opt

_DRIFT, _MOVE = "Drift", "Moves"


def rebalance(
    trace: opt.TraceFile,
    topology: opt.Topology,
    domains: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            rich_help_panel=_DRIFT,
            help="Domains in order, names or patterns; a|b joins two. Default: all of the trace.",
        ),
    ] = None,
    block: Annotated[
        int, typer.Option(metavar="STEPS", min=1, help="Steps of one domain.", rich_help_panel=_DRIFT)
    ] = 8,
    cycles: Annotated[
        int, typer.Option(metavar="N", min=1, help="Times that the domains come round.", rich_help_panel=_DRIFT)
    ] = 2,
    repeat: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="Real steps that each replayed step stands for.", rich_help_panel=_DRIFT),
    ] = 1000,
    intervals: Annotated[
        str, typer.Option(metavar="N,N,...", help="Steps between plans.", rich_help_panel=_MOVE)
    ] = "1,2,4,8",
    thresholds: Annotated[
        str, typer.Option(metavar="X,X,...", help="Rise of imbalance that asks for a plan.", rich_help_panel=_MOVE)
    ] = "0.1,0.3",
    window: Annotated[
        int, typer.Option(metavar="STEPS", min=1, help="Steps that a new plan is fitted on.", rich_help_panel=_MOVE)
    ] = 2,
    migrate: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Copies, in rounds: stop serving, overlap it, or free.", rich_help_panel=_MOVE
        ),
    ] = "stop",
    stall: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="What a move stops beyond its bytes.", rich_help_panel=_MOVE)
    ] = 0.0,
    start: Annotated[
        str, typer.Option(metavar="NAME", help="First plan: mixed (all domains) or first.", rich_help_panel=_MOVE)
    ] = "mixed",
    solver: Annotated[str, typer.Option(metavar="NAME", help="Solver.")] = "eplb",
    slots_per_rank: opt.SlotsPerRank = None,
    policy: opt.Policy = opt.DEFAULT_POLICY,
    transport: opt.Transport = None,
    ranks: opt.Ranks = None,
    set: opt.Set = None,
    without: opt.Without = None,
    degrade: opt.Degrade = None,
    dims: opt.Dims = None,
    phase: opt.Phase = None,
    tokens_per_rank: Annotated[int, typer.Option(metavar="N", min=1, help="Tokens of a rank in a step.")] = 64,
    seed: opt.Seed = 0,
    deadline: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="Time that each plan may take. Compiling, once after an installation, is not counted.",
            rich_help_panel="What runs",
        ),
    ] = 60.0,
    format: opt.Format = None,
    model: opt.Model = None,
    format_option: opt.FormatOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the figure here (HTML).")
    ] = None,
    json: opt.Json = False,
) -> None:
    """Replay TRACE sorted by domain, plan anew as it drifts, pay for every move, and say what that is worth."""
    load.writable(output)
    from moesim.study.rebalance import Rebalancing, cut_note, replay
    from moesim.study.sweep.rebalance import RebalanceSettings, row_of, world_of
    from moesim.study.sweep.settings import parse

    given: dict[str, Any] = {
        "trace": str(trace.absolute()), "topology": topology, "format": format, "model": model, "block_steps": block,
        "cycles": cycles, "repeat": repeat, "window": window, "migrate": migrate, "stall_s": stall, "start": start,
        "solver": solver, "policy": policy, "transport": transport, "ranks": ranks, "dims": dims, "phase": phase,
        "tokens_per_rank": tokens_per_rank, "seed": seed, "deadline_s": deadline,
        "domains": load.names(domains or ""), "format_options": load.format_options(None, format_option),
        **load.edits(set, without, degrade),
    }  # fmt: skip
    if slots_per_rank is not None:
        given["slots"] = slots_per_rank
    chosen = parse(RebalanceSettings, given)
    how: dict[str, Any] = {"window": window, "migrate": migrate, "stall_s": stall, "repeat": repeat}
    rules = [Rebalancing("never", **how)]
    rules += [Rebalancing("interval", interval=one, **how) for one in load.numbers("--intervals", intervals)]
    rules += [Rebalancing("threshold", threshold=one, **how) for one in load.numbers("--thresholds", thresholds, float)]
    rules += [Rebalancing("oracle", **how), Rebalancing("oracle", **{**how, "migrate": "free"})]
    shared = {key: read() for key, read in chosen.needs(Path.cwd()).items()}
    rows = []
    with screen.progress() as say:
        say("packing and planning")
        world, first, notes = world_of(chosen, shared)
        never = None
        for rule in rules:
            say(f"replaying {count(len(world.batches), 'step')}: {_name(rule)}")
            found = replay(world, first, rule)
            never = never or found
            rows.append({"rule": _name(rule), **row_of(found, never, rule)})
    notes = (*notes, *cut_note(len(world.cut), world.searches, deadline))
    answer = _answer(rows)
    if output is not None:
        _draw(rows, output)
        screen.say(f"wrote {output}")
    if json:
        screen.print_json({"schema": 1, "answer": answer, "rows": rows, "notes": list(notes)})
        return
    columns = (
        "saved_share",
        "step_s",
        "stopped_s",
        "plans",
        "moved_bytes",
        "imbalance",
        "interval_s",
        "break_even_interval_s",
    )
    from moesim.study_report import cell

    table = [[row["rule"], *(cell(column, row[column]) for column in columns)] for row in rows]
    screen.print_table(
        ("rule", *columns), table, title=f"{count(len(world.batches), 'step')} of {repeat} real ones, {solver}"
    )
    screen.stdout().print(answer, markup=False, soft_wrap=True)
    screen.print_notes(notes)


def _name(rule: Any) -> str:
    free = " (moves for free)" if rule.migrate == "free" else ""
    about: dict[str, str] = {"interval": f"every {rule.interval}", "threshold": f"imbalance +{rule.threshold:.0%}"}
    return about.get(str(rule.when), str(rule.when)) + free


def _answer(rows: list[dict[str, Any]]) -> str:
    real = [row for row in rows[1:] if not row["rule"].startswith("oracle")]
    best = max(real, key=lambda row: float(row["saved_share"]), default=None)
    ceiling = float(rows[-1]["saved_share"])
    end = f"; knowing the traffic and moving for free would save {ceiling:.1%}"
    if real and not any(row["plans"] for row in real):
        return f"no rule planned anew in these steps: take shorter intervals, lower thresholds or more steps{end}"
    if best is None or best["saved_share"] <= 0:
        return f"planning anew does not pay here: no rule beats the first plan{end}"
    even = best["break_even_interval_s"]
    when = f"; it pays where plans are at least {show(even, 'time')} apart" if even else ""
    return f"best: {best['rule']}, saves {best['saved_share']:.1%} of the time{when}{end}"


def _draw(rows: list[dict[str, Any]], path: Path) -> None:
    from moesim.base.files import write_text
    from moesim.figures import lines

    points = [row for row in rows if row["interval_s"] is not None]
    levels = {row["rule"]: 100 * row["saved_share"] for row in rows if row["interval_s"] is None}
    saved = [100 * row["saved_share"] for row in points]
    figure = lines(
        {"every so many seconds": ([row["interval_s"] for row in points], saved)},
        title="How often to plan anew", subtitle="above zero: worth it; moves are paid for",
        x_title="seconds between plans", y_title="time saved against never (%)", x_log=True, markers=True,
        levels=levels,
    )  # fmt: skip
    write_text(path, figure.to_html(include_plotlyjs=True))
