"""What if: change the cluster, the group, the batch or the traffic, and see the step time at once."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import dash_state as state
import dash_ui as ui
import dash_work as work
import numpy as np
import streamlit as st

from moesim import figures
from moesim.base.errors import MoesimError
from moesim.base.units import count, show
from moesim.solve import Plan
from moesim.study import fewest_slots
from moesim.study.whatif import Outcome, Scenario

ON_THE_SPOT = "placed on the spot"
FACTORS = [0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0, 8.0]
MOST_GPUS = 512

st.title("What if")
st.caption("Turn a knob and see what it does to the step: by formula at once, by full simulation behind the button.")
given = ui.inputs_or_stop()
spec, whole = given.costs.spec, given.whole
plans = state.fitting(given)
per_node = whole.ranks // whole.nodes
can_grow = whole.description.nodes is not None
size_now = given.judged.tokens_per_rank or max(1, len(given.judged.token) // (len(given.judged) * given.cluster.ranks))
counts = np.bincount(given.judged.trace.domain, minlength=len(given.judged.trace.domains))
largest = np.argsort(-counts, kind="stable")[: ui.MOST_DOMAINS]
domains = [given.judged.trace.domains[i] for i in sorted(largest) if counts[i]]


def natural(plan: Plan | None) -> dict[str, Any]:
    """Return the knobs as they stand now."""
    slots = plan.placement.slots_per_rank - given.fewest_slots if plan is not None else 1
    return {"w_between": 1.0, "w_inside": 1.0, "w_nodes": whole.nodes, "w_ranks": given.cluster.ranks,
            "w_slots": min(max(slots, 0), 8), "w_tokens": size_now, "w_failed": (), "w_mix": ()}  # fmt: skip


def reset() -> None:
    """Put all knobs back."""
    for key, value in st.session_state.natural.items():
        state.put(key, list(value) if isinstance(value, tuple) else value)
    for name in domains:
        state.put(f"w_domain_{name}", 1.0)


def knob(label: str, key: str, options: list[Any], **more: Any) -> Any:
    """Draw a slider over a few settings; what is not among them becomes what is now."""
    now = st.session_state.natural[key]
    settings = sorted({*options, now})
    if st.session_state.get(key) not in settings:
        state.put(key, now)
    return st.select_slider(label, settings, key=key, persist_state="session", **more)


def follow(plan: Plan | None) -> None:
    """Put knobs back that spoke of other inputs or another plan than the ones chosen now."""
    st.session_state.natural = natural(plan)
    mark = (given.cluster.digest, spec.name, size_now)
    if st.session_state.setdefault("w_for", mark) != mark:
        st.session_state.w_for = mark
        reset()


def domain_sliders() -> tuple[str, ...]:
    """Draw a weight for each domain and return those that are not 1 as ``name=weight``."""
    wanted = {}
    for one in state.get("w_mix"):
        name, _, weight = str(one).rpartition("=")
        with contextlib.suppress(ValueError):
            wanted[name] = min(max(float(weight), 0.0), 1.0)
    for name in domains:
        st.session_state.setdefault(f"w_domain_{name}", wanted.get(name, 1.0))
        st.slider(name, 0.0, 1.0, step=0.1, key=f"w_domain_{name}", persist_state="session",
                  help="1: as recorded, 0: none of it.")  # fmt: skip
    weights = {name: float(st.session_state[f"w_domain_{name}"]) for name in domains}
    return tuple(f"{name}={weight:g}" for name, weight in weights.items() if weight != 1)


def controls() -> tuple[str, Scenario]:
    """Draw the knobs and return the name of the plan and what the knobs say."""
    with st.container(border=True):
        options = [ON_THE_SPOT, *plans]
        name = ui.pick("Plan", "w_plan", options, default=options[-1],
                       help="Used where GPUs and slots stay as they are; else experts are placed anew.")  # fmt: skip
        plan = plans.get(name)
        follow(plan)
        between = knob("Bandwidth between nodes (×)", "w_between", FACTORS)
        inside = knob("Bandwidth inside nodes, NVLink (×)", "w_inside", FACTORS)
        nodes = None
        if can_grow:
            nodes = knob("Nodes", "w_nodes", [n for n in (1, 2, 4, 8, 16, 32) if n * per_node <= MOST_GPUS])
        total = per_node * nodes if nodes is not None else whole.ranks
        sizes = [n for n in (2, 4, 8, 16, 32, 64, 128, 256, 512) if n <= total and spec.experts <= 64 * n]
        ranks = knob("EP size (GPUs)", "w_ranks", [*sizes, total])
        more = knob("Redundant experts of a GPU and layer", "w_slots", list(range(9)))
        tokens = knob("Tokens of a GPU in a step", "w_tokens",
                      [max(1, round(size_now * f)) for f in (0.125, 0.25, 0.5, 2, 4)])  # fmt: skip
    with st.container(border=True):
        parts = [*whole.vertices[: len(whole.paths.node)], *whole.node_names,
                 *[name for name in whole.vertices if ".nic" in name]]  # fmt: skip
        state.put("w_failed", [one for one in state.get("w_failed") if one in parts])
        failed = st.multiselect("Failed GPUs, nodes or NICs", parts, key="w_failed", persist_state="session",
                                max_selections=8, placeholder="none")  # fmt: skip
        if len(domains) > 1:
            with st.expander("Mix of domains"):
                state.put("w_mix", domain_sliders())
                if len(domains) < np.count_nonzero(counts):
                    st.caption(f"The {len(domains)} largest of {np.count_nonzero(counts)}; others stay as recorded.")
        st.button("Put all back", key="w_reset", on_click=reset, width="stretch")
    mix = {one.rpartition("=")[0]: float(one.rpartition("=")[2]) for one in state.get("w_mix")}
    scenario = Scenario(
        slots_per_rank=fewest_slots(spec.experts, ranks) + more, ranks=ranks, nodes=nodes, between_nodes=between,
        inside_nodes=inside, without=tuple(failed), tokens_per_rank=tokens, domains=mix,
    )  # fmt: skip
    return name, scenario


def prices(label: str, wanted: list[tuple[Scenario, Plan | None]]) -> list[Outcome | MoesimError]:
    """Price scenarios by the closed form, each once; what is impossible says why."""

    def work_on(scenario: Scenario, plan: Plan | None) -> Any:
        def price(job: Any) -> Outcome | MoesimError:
            try:
                return work.priced(given, scenario, plan)
            except MoesimError as error:
                return error

        return price

    found: list[Outcome | MoesimError] = []
    for scenario, plan in wanted:
        key = work.scenario_key(given, scenario, plan.placement if plan is not None else None)
        found.append(ui.ready(key, label, work_on(scenario, plan)))
    return found


def one_at_a_time(base: Scenario, plan: Plan | None, base_s: float) -> dict[str, Any]:
    """Return what each knob alone does, turned down and up."""
    half, double, slots = max(1, size_now // 2), size_now * 2, base.slots_per_rank
    turns = {
        "bandwidth between nodes": (("× 1/2", {"between_nodes": 0.5}), ("× 2", {"between_nodes": 2.0})),
        "bandwidth inside nodes": (("× 1/2", {"inside_nodes": 0.5}), ("× 2", {"inside_nodes": 2.0})),
        "tokens of a GPU": ((f"{half:,}", {"tokens_per_rank": half}), (f"{double:,}", {"tokens_per_rank": double})),
        "redundant experts": (("one less", {"slots_per_rank": slots - 1}), ("one more", {"slots_per_rank": slots + 1})),
    }  # fmt: skip
    turned = [dataclasses.replace(base, **what) for ends in turns.values() for _, what in ends]
    found = iter(prices("Turning every knob", [(scenario, plan) for scenario in turned]))

    def named(label: str, outcome: Outcome | MoesimError) -> tuple[str, float]:
        return (
            (f"{label}: impossible", base_s)
            if isinstance(outcome, MoesimError)
            else (label, outcome.report.mean_step_s)
        )

    return {name: tuple(named(label, next(found)) for label, _ in ends) for name, ends in turns.items()}


def results(name: str, wanted: Scenario) -> None:
    """Show the scenario against what is now."""
    plan = plans.get(name)
    ordinary = st.session_state.natural
    (then,) = prices("Pricing the scenario", [(wanted, plan)])
    if isinstance(then, MoesimError):
        st.error(str(then))
        return
    # like is compared with like: where the plan does not fit the scenario, both sides are placed on the spot
    used = plan if then.kept else None
    slots = plan.placement.slots_per_rank if plan is not None else given.fewest_slots + ordinary["w_slots"]
    nodes = whole.nodes if can_grow else None
    base = Scenario(slots, ranks=given.cluster.ranks, nodes=nodes, tokens_per_rank=size_now)
    (now,) = prices("Pricing what is now", [(base, used)])
    if isinstance(now, MoesimError):
        st.error(str(now))
        return
    a, b = now.report, then.report
    if a.steps != len(given.judged):
        st.caption(f"The formula looks at {count(a.steps, 'step')} and not at {len(given.judged)}: what is now differs "
                   "a little from what other pages say. The full simulation takes all.")  # fmt: skip
    earned = b.tokens_per_s_per_gpu, a.tokens_per_s_per_gpu

    def against(attribute: str) -> str:
        return f"{ui.change(getattr(b, attribute), getattr(a, attribute))} vs now"

    ui.kpis([
        ("Step time", show(b.mean_step_s, "time"), against("mean_step_s"), "Mean of a held-out step, closed form."),
        ("All-to-all", show(b.all_to_all_s, "time"), against("all_to_all_s"), "Critical path in dispatch and combine."),
        ("Experts", show(b.compute_s, "time"), against("compute_s"), "Critical path in experts."),
        ("Load imbalance", f"{b.batch_imbalance:.2f}×", against("batch_imbalance"), "Busiest GPU over the mean."),
        ("Tokens/s of a GPU", f"{earned[0]:,.0f}", f"now {earned[1]:,.0f}", "What a GPU earns, of the whole model."),
        ("GPUs", f"{then.cluster.ranks} in {count(then.cluster.nodes, 'node')}",
         f"{count(then.placement.slots_per_rank, 'slot')} each",
         "GPUs of the group and nodes that are left, and expert slots of a GPU and layer."),
    ])  # fmt: skip
    if plan is not None and not then.kept:
        st.caption("The knobs change GPUs or slots, so both sides are **placed on the spot**, balanced by load: like "
                   "is compared with like. A search finds better placements for both.")  # fmt: skip
    if then.lost is not None and then.lost.any():
        st.warning(f"Under **{name}** this failure takes the only copy of {count(int(then.lost.sum()), 'expert')}, in "
                   f"{int((then.lost > 0).sum())} of {count(len(then.lost), 'layer')}: load it first.")  # fmt: skip
    elif then.lost is not None:
        st.success(f"**{name}** survives this failure: every expert has a copy elsewhere.")
    dark = state.dark()
    ui.draw(figures.comparison({"now": work.split(a), "what if": work.split(b)}, dark=dark), "w_bars")
    view = ui.tabs("w_detail", ["What drives it", "Load", "Hot links", "Full simulation"])
    if view == "What drives it":
        ui.draw(figures.sensitivity(a.mean_step_s, one_at_a_time(base, used, a.mean_step_s), dark=dark), "w_knobs")
    elif view == "Load":
        ui.draw(figures.load_heatmap(b.tokens, b.rank_node, layer_ids=spec.layer_ids, dark=dark), "w_load")
    elif view == "Hot links":
        ui.draw(figures.topology(then.cluster, b.link_utilisation, dark=dark), "w_links")
    else:
        simulate_fully(wanted, plan)
    ui.notes(then.notes)


def simulate_fully(wanted: Scenario, plan: Plan | None) -> None:
    """Offer the event engine over all steps, in the background."""
    steps = count(len(given.judged), "held-out step")
    st.caption(f"{steps} through the event engine; where sizes change, with a search of 20 s for them.")
    key = work.scenario_key(given, wanted, plan.placement if plan is not None else None, engine="events")
    if st.button("Simulate in full", type="primary", key="w_full"):
        state.put("w_full_of", key)
    if st.session_state.get("w_full_of") != key:
        return
    found = ui.ready(key, "Simulating in full", work.simulated_fully(given, wanted, plan), limit_s=90.0)
    splits = {name: work.split(report) for name, report in found.items()}
    ui.draw(figures.comparison(splits, dark=state.dark()), "w_fully")
    st.caption(f"{count(next(iter(found.values())).steps, 'held-out step')} by the event engine.")


@st.fragment
def page() -> None:
    """Everything below the head: a turn of a knob runs this part alone."""
    left, right = ui.columns()
    with left:
        name, scenario = controls()
    with right:
        ui.context(given)
        results(name, scenario)
    state.share()


page()
