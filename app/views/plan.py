"""Plan: search a placement, watch it get better, see what it buys."""

from __future__ import annotations

from typing import Any

import dash_files
import dash_jobs
import dash_state as state
import dash_ui as ui
import dash_work as work
import streamlit as st

from moesim import figures
from moesim.base.errors import MoesimError
from moesim.base.units import show
from moesim.costs import TRANSPORTS
from moesim.placement import POLICIES
from moesim.solve import Plan
from moesim.solve.constraints import Constraints
from moesim.solve.objective import AIMS, RISKS, Objective

NOTHING = "no plan"
SOLVER_HELP = "moesim searches under the costs; the others balance load, or do what engines do."
POLICY_HELP = "Which copy of an expert serves a token. nearest: the own GPU, else the own node; hash: vLLM."
TRANSPORT_HELP = "How tokens travel. By phase: direct in decode, else hierarchical."

left, right = ui.header(
    "Plan",
    "Search where every expert lives and how many copies it has; see what that buys on traffic the plan has not seen.",
)
with right:
    given = ui.inputs_or_stop()
fewest = given.fewest_slots


def constraints() -> dict[str, Any]:
    """Draw what a plan may be asked for beside speed, and return it as arguments of the planning."""
    running = ui.pick("Runs now", "running_plan", [NOTHING, *state.fitting(given)],
                      help="Where experts would have to move from. Staying put is a candidate.")  # fmt: skip
    aim = ui.pick("Make small", "aim", AIMS, help="Step time; the all-to-all alone; or the fullest GPU alone.")
    risk = ui.pick("Over windows of traffic", "risk", RISKS, help="The mean, or the mean of the worst quarter (CVaR).")
    unseen = None
    if aim == "load" and not st.checkbox(
        "Reckon with traffic of other domains", value=True, key="unseen", persist_state="session",
        help="Where the trace has several: part of what is balanced has its popularity dealt anew.",
    ):  # fmt: skip
        unseen = 0.0
    hot = int(ui.number("Hot experts with copies on two nodes", "hot", 0, given.costs.spec.experts,
                        help="So many of the most loaded experts of a layer survive the loss of a node."))  # fmt: skip
    previous = None if running == NOTHING else state.plans()[running].placement
    most = None
    if previous is not None and st.checkbox("Limit the moves", key="limit_moves", persist_state="session"):
        most = int(ui.number("Moves in a layer, at most", "most_moves", 0, 100_000))
    seed = int(ui.number("Seed", "seed", 0, 10**6, help="Of everything drawn: the same seed, the same plan."))
    options: dict[str, Any] = {}
    for name, default in work.options_of(solver).items():
        if not isinstance(default, (bool, int, float)):
            continue
        key = f"option_{solver}_{name}"
        if isinstance(default, bool):
            options[name] = st.checkbox(name, value=default, key=key, help="Option of this solver.")
            continue
        text = st.text_input(name, value=f"{default:g}", key=key, help="Option of this solver; see docs/solvers.md.")
        try:
            options[name] = type(default)(float(text))
        except (ValueError, OverflowError):
            st.error(f"{name}: expected a number, got {text!r}")
    return {
        "previous": previous, "seed": seed, "options": options,
        "objective": Objective(aim=aim, risk=risk, unseen=unseen),
        "constraints": Constraints(most_moves=most, hot=hot),
    }  # fmt: skip


def start(solvers: tuple[str, ...], label: str, **how: Any) -> None:
    """Begin a planning job whose plans come into this session when it ends."""
    key = work.planning_key(given, solvers, **how)
    dash_jobs.submit(key, label, work.planning(given, solvers, **how), how["deadline_s"] * len(solvers))
    state.await_job(key)
    state.put("shown_job", key)
    st.rerun()


def load(read: Any, name: str) -> None:
    """Load a plan or a map and show it, or keep what is wrong with it."""
    st.session_state.pop("up_plan_error", None)
    try:
        state.look_at(state.add_plan(name, state.as_plan(read(), name, given, str(state.get("policy")))))
    except MoesimError as error:
        st.session_state.up_plan_error = str(error)


def take_upload() -> None:
    """Load what was uploaded, once."""
    file = st.session_state.get("up_plan")
    if file is None:
        st.session_state.pop("up_plan_error", None)
    elif st.session_state.get("up_plan_seen") != file.file_id:
        st.session_state.up_plan_seen = file.file_id
        sizes = (given.cluster.ranks, given.costs.spec)
        load(lambda: dash_files.upload_plan(file.name, file.getvalue(), *sizes), file.name)


take_upload()
with left:
    with st.container(border=True):
        solver = ui.pick("Solver", "solver", work.solver_names(), help=SOLVER_HELP)
        if int(state.get("slots")) < fewest:
            state.put("slots", fewest + 1)
        slots = int(ui.number("Expert slots of a GPU and layer", "slots", fewest, max(fewest * 4, fewest + 8),
                              help=f"{fewest} hold every expert once; more hold copies of hot ones."))  # fmt: skip
        policy = ui.pick("Dispatch policy", "policy", POLICIES.names(), help=POLICY_HELP)
        transport = ui.pick("Transport", "transport", [state.BY_PHASE, *TRANSPORTS.names()], help=TRANSPORT_HELP)
        deadline = float(ui.number("Deadline (s)", "deadline", 1.0, 3600.0, step=5.0,
                                   help="The best placement so far is taken when time is up."))  # fmt: skip
        how = {"slots": slots, "policy": policy, "transport": None if transport == state.BY_PHASE else transport,
               "deadline_s": deadline}  # fmt: skip
        with st.expander("Constraints and options"):
            more = constraints()
        busy = state.running()
        if st.button("Plan", type="primary", key="start", width="stretch", disabled=bool(busy)):
            start((solver,), f"Planning with {solver}", **how, **more)
        if st.button("Add the fast baselines", key="baselines", width="stretch", disabled=bool(busy),
                     help="Contiguous, round-robin, snake, LPT and EPLB with these settings; seconds."):  # fmt: skip
            start(work.FAST, "Planning the baselines", **how, seed=more["seed"])
    with st.expander("Load a plan or a map", expanded=bool(st.session_state.get("up_plan_error"))):
        st.file_uploader("Plan, or map of an engine", type=list(dash_files.SUFFIXES["plan"]), key="up_plan",
                         help="A plan of moesim, or a map for SGLang, TensorRT-LLM, vLLM, EPLB.")  # fmt: skip
        if offered := {key: name for key, name in dash_files.offered("plan").items() if key.startswith("data:")}:
            chosen = ui.pick("From the folders given at start", "plan_file", offered)
            if st.button("Load", key="load_plan"):
                sizes = (given.cluster.ranks, given.costs.spec)
                load(lambda: dash_files.read_plan(chosen, *sizes), offered[chosen].rsplit("/", 1)[-1])
                st.rerun()
        if error := st.session_state.get("up_plan_error"):
            st.error(error)


@st.fragment(run_every=1.0)
def progress(key: str, unplanned_s: float) -> None:
    """Show the anytime curve of a running job against what runs without a plan, and the button that ends it."""
    job = dash_jobs.find(key)
    if job is None or not job.running:
        st.rerun()
        return
    curves = {name: list(points) for name, points in job.curves.items()}
    best = min((score for points in curves.values() for _, score in points), default=None)
    first = next((points[0][1] for points in curves.values() if points), None)
    a, b, c, d = st.columns([1, 1.2, 1, 1.2])
    a.metric("Time spent", f"{job.elapsed_s:.0f} s", border=True)
    better = best is not None and first is not None and best < first
    b.metric("Best step so far", show(best, "time") if best is not None else "searching",
             ui.change(best, first) if better else None, delta_color="inverse", border=True)  # fmt: skip
    c.metric("Now", job.stage, border=True)
    with d:
        st.progress(
            job.share, text=f"{job.elapsed_s:.0f} s of at most {job.limit_s:.0f} s" if job.limit_s else job.stage
        )
        if st.button("Stop, keep the best so far", key="stop", width="stretch", disabled=job.stopped()):
            job.stop()
    until = job.elapsed_s if len(curves) < 2 else None
    ui.draw(figures.anytime(curves, baselines={NOTHING: unplanned_s}, until_s=until, dark=state.dark()), "anytime_live")
    st.caption("You can leave this page: the search goes on, and other pages say so.")


def failing(plan: Plan, rank_node: Any, dark: bool) -> None:
    """Show what each GPU and node would take with it, and price every loss behind a button."""
    ui.draw(figures.losses(plan.placement, given.judged.trace.loads, rank_node, dark=dark), "losses")
    st.caption("Experts that no other GPU (no other node) holds must be read from storage before serving goes on. "
               "*Hot experts with copies on two nodes*, under Constraints, prevents it.")  # fmt: skip
    key = work.survival_key(plan, given)
    if st.button("Price every loss", key="survive", help="As `moesim survive`: one simulation for each GPU and node."):
        state.put("survival_of", key)
    if st.session_state.get("survival_of") == key:
        found = ui.ready(key, "Losing GPUs and nodes", work.surviving(plan, given), limit_s=300.0)
        st.dataframe(work.survival_table(found), hide_index=True)
        st.caption(f"A step now takes {show(found.step_s, 'time')}. Whole again: missing experts are read from storage "
                   "in fewest moves; step then: on what is left, lost GPUs' tokens dealt to others.")  # fmt: skip


def details(name: str, old_name: str, after: Any, before: Any) -> None:
    """Show the part that was chosen."""
    plan, ids, dark = after.plan, given.trace.spec.layer_ids, state.dark()
    view = ui.tabs(
        "plan_detail",
        ["Before and after", "Time", "Anytime curve", "If a part fails", "Facts"],
    )
    if view == "Before and after":
        limit = max(figures.largest_ratio(one.report.tokens) for one in (before, after))
        pair = ((before, f"Before: {old_name}", "load_before"), (after, f"After: {name}", "load_after"))
        for column, (one, title, key) in zip(st.columns(2), pair, strict=True):
            with column:
                report = one.report
                ui.draw(figures.load_heatmap(report.tokens, report.rank_node, layer_ids=ids, title=title, limit=limit,
                                             dark=dark), key)  # fmt: skip
        st.caption("Both on one colour scale. Red GPUs do more than their share and the others wait for them: "
                   "the side with less colour is the better balanced one.")  # fmt: skip
    elif view == "Time":
        splits = {old_name: work.split(before.report), name: work.split(after.report)}
        ui.draw(figures.comparison(splits, bound_s=after.row.bound_s, dark=dark), "split")
    elif view == "Anytime curve":
        job = dash_jobs.find(st.session_state.get("shown_job", ""))
        curves = {key: list(points) for key, points in job.curves.items()} if job is not None else {}
        if any(curves.values()):
            lines = {old_name: before.row.fit_step_s}
            until = job.seconds if job is not None and len(curves) == 1 else None
            ui.draw(figures.anytime(curves, bound_s=plan.bound_s, baselines=lines, until_s=until, dark=dark), "anytime")
            st.caption("Each step down is a better plan found. Where the curve is flat, more time buys nothing.")
        else:
            st.info("Only plans that were searched here have a curve.")
    elif view == "If a part fails":
        failing(plan, after.report.rank_node, dark)
    else:
        facts = {
            "solver": plan.solver, "dispatch policy": plan.policy, "transport": plan.transport,
            "slots of a GPU and layer": plan.placement.slots_per_rank,
            "most copies of an expert": int(plan.placement.replicas.max()), "empty slots": plan.placement.empty_slots,
            "step on fitted traffic": show(plan.score_s, "time"), "bound there": show(plan.bound_s, "time"),
            "gap there": f"{plan.gap:.1%}", "planned in": f"{plan.wall_s:.1f} s", "seed": plan.seed,
            "digest": plan.digest,
        }  # fmt: skip
        st.dataframe({"fact": list(facts), "value": [str(value) for value in facts.values()]}, hide_index=True)


with right:
    ui.context(given)
    base = ui.unplanned(given)
    if busy:
        progress(busy[0].key, base.score_s)
        st.stop()
    plans = state.fitting(given)
    if not plans:
        before = ui.judged(NOTHING, base, given)
        ui.plan_cards(before, None, None)
        st.info("This is what runs without a plan: experts in order, in as few slots as hold them. Press **Plan** to "
                "search a better one.")  # fmt: skip
        title = "Load of every GPU in every layer, without a plan"
        report, ids = before.report, given.trace.spec.layer_ids
        heat = figures.load_heatmap(report.tokens, report.rank_node, title=title, layer_ids=ids, dark=state.dark())
        ui.draw(heat, "before_only")
        ui.notes(before.report.notes)
        st.stop()
    one, two = st.columns(2)
    with one:
        name = ui.pick("Plan", "looked_at", list(plans), default=list(plans)[-1])
    with two:
        other = ui.pick("Compared with", "before_name", [NOTHING, *[n for n in plans if n != name]])
    before = ui.judged(other, plans.get(other, base), given)
    after = ui.judged(name, plans[name], given)
    ui.plan_cards(after, before, ui.move(before, after, given))
    details(name, other, after, before)
    ui.notes([*after.plan.notes, *after.report.notes])
