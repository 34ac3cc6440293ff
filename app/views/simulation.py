"""Simulation: where the time of a step goes under one plan."""

from __future__ import annotations

import json

import dash_state as state
import dash_ui as ui
import dash_work as work
import numpy as np
import streamlit as st

from moesim import figures
from moesim.base.arrays import digest
from moesim.base.errors import MoesimError
from moesim.base.units import show
from moesim.simulate import SCHEDULES, chrome_trace
from moesim.simulate.phases import PHASES

MOST_BARS = 9000
MOST_LAYERS = 6
NOTHING = "no plan"

left, right = ui.header("Simulation", "One plan, step by step: what the critical path runs through, who is overloaded, "
                        "which link is hot, who waits.")  # fmt: skip
with right:
    given = ui.inputs_or_stop()
    base = ui.unplanned(given)
plans = {**state.fitting(given), NOTHING: base}
with left, st.container(border=True):
    st.markdown("**What is simulated**")
    name = ui.pick("Plan", "sim_plan", list(plans))
    part = ui.pick(
        "Steps", "sim_part", ["held-out", "fitted"], help="Held-out steps are traffic the plan has not seen."
    )
    schedule = ui.pick("Schedule", "sim_schedule", ["as the costs say", *SCHEDULES],
                       help="How phases share a GPU: one after the other, the shared expert beside dispatch, or two "
                       "half batches that overlap.")  # fmt: skip
    network = ui.pick("Network model", "sim_network", ["bottleneck", "max-min"], default=given.network)
    plan = plans[name]
    steps = given.judged if part == "held-out" else given.fitted
    step = int(ui.number("Step of the timeline", "sim_step", 0, max(len(steps) - 1, 0))) if len(steps) > 1 else 0
chosen = None if schedule == "as the costs say" else schedule
with right:
    ui.context(given)
    settings = {"part": part, "schedule": chosen, "network": network, "policy": plan.policy, "spans": step}
    report = ui.ready(digest("simulate", plan.digest, given.digest, settings), f"Simulating {name}",
                      work.simulating(plan, given, **settings))  # fmt: skip
    parts = work.split(report)
    total = report.mean_step_s
    ui.kpis([
        ("Step time, mean", show(total, "time"), f"p99 {show(report.p99_step_s, 'time')}",
         "Mean seconds of a step, from its start until the last GPU has its last result."),
        ("Throughput", f"{report.model_tokens_per_s / 1e6:,.2f}M tokens/s" if report.model_tokens_per_s >= 1e6 else
         f"{report.model_tokens_per_s / 1e3:,.0f}k tokens/s",
         f"{report.tokens_per_s_per_gpu:,.0f} a GPU",
         f"Tokens that the group takes through the whole model in a second; a step of it is "
         f"{show(report.model_step_s, 'time')}: every MoE layer, dense layers and output head."),
        ("All-to-all", f"{report.all_to_all_s / total:.0%} of the step", show(report.all_to_all_s, "time"),
         "Share of the critical path that runs through dispatch and combine."),
        ("Experts", f"{report.compute_s / total:.0%} of the step", show(report.compute_s, "time"),
         "Share of the critical path that runs through routed and shared experts."),
        ("A GPU waits", f"{report.mean_wait_s / total:.0%} of the step", show(report.mean_wait_s, "time"),
         "Mean time of a GPU that waits for slower ones."),
        ("Load imbalance", f"{report.batch_imbalance:.2f}×", f"{report.imbalance:.2f}× over the window",
         "Tokens of the busiest GPU over the mean, batch by batch. 1 is balance."),
    ])  # fmt: skip
    st.markdown(f"**Bottleneck:** {report.bottleneck}.")
    dark, ids = state.dark(), given.trace.spec.layer_ids
    view = ui.tabs("sim_detail", ["Time", "Load", "Node traffic", "Links", "Timeline", "Stragglers"])
    if view == "Time":
        ui.draw(figures.comparison({name: parts}, dark=dark), "sim_split")
        ui.draw(figures.layer_split(report.layer_split_s, layer_ids=ids, dark=dark), "sim_layers")
    elif view == "Load":
        ui.draw(figures.load_heatmap(report.tokens, report.rank_node, layer_ids=ids, dark=dark), "sim_load")
        layers = {i: f"decoder layer {one}" for i, one in enumerate(ids)}
        a, b = st.columns(2)
        with a:
            layer = ui.pick("Layer", "sim_layer", layers)
        with b:
            rank = ui.pick("Rank", "sim_rank", list(range(len(report.rank_node))),
                           default=int(report.tokens[layer].argmax()))  # fmt: skip
        held = plan.placement.experts[layer, rank]
        held = held[held >= 0]
        copies = plan.placement.replicas[layer]
        loads = given.judged.trace.loads[layer] / max(given.judged.trace.loads[layer].mean(), 1e-300)
        st.dataframe({"expert": held, "copies in the group": copies[held],
                      "load of the expert (× mean)": np.round(loads[held], 2)}, hide_index=True)  # fmt: skip
    elif view == "Node traffic":
        if given.cluster.nodes > 1:
            ui.draw(figures.node_traffic(report.node_bytes, steps=report.steps, dark=dark), "sim_nodes")
        else:
            st.info("There is one node: no byte leaves it.")
    elif view == "Links":
        ui.draw(figures.topology(given.cluster, report.link_utilisation, dark=dark), "sim_links")
        used = report.link_utilisation
        hot = np.argsort(-used, kind="stable")[:8]
        st.dataframe({"busiest links": [report.link_name[i] for i in hot],
                      "busy": [f"{used[i]:.1%}" for i in hot],
                      "a step": [show(float(report.link_bytes[i]) / report.steps, "bytes") for i in hot],
                      "bandwidth": [show(float(report.link_bandwidth[i]), "bandwidth") for i in hot]},
                     hide_index=True)  # fmt: skip
    elif view == "Timeline":
        most = max(1, MOST_BARS // (len(report.rank_node) * (len(PHASES) + 1)))
        count, first = min(most, MOST_LAYERS, len(ids)), 0
        if len(ids) > count:
            state.put("sim_first_layer", min(int(state.get("sim_first_layer") or 0), len(ids) - count))
            first = st.slider("First layer", 0, len(ids) - count, key="sim_first_layer", persist_state="session")
        try:
            span = (first, first + count)
            shown = step if report.spans is not None and (report.spans["step"] == step).any() else None
            ui.draw(
                figures.timeline(report.spans, PHASES, step=shown, layers=span, layer_ids=ids, dark=dark), "sim_time"
            )
        except MoesimError as error:
            st.error(str(error))
        st.caption("Grey gaps are GPUs that wait for others. The whole step, layer by layer, opens in Perfetto "
                   "(ui.perfetto.dev) or chrome://tracing.")  # fmt: skip
        key = digest("chrome", plan.digest, given.digest, settings)
        if st.button("Prepare the whole timeline for Perfetto", key="sim_chrome"):
            state.put("chrome_of", key)
        if st.session_state.get("chrome_of") == key:
            text = ui.ready(key, "Writing the timeline", lambda job: json.dumps(chrome_trace(report), allow_nan=False))
            st.download_button(
                "Download timeline.json", text, "timeline.json", "application/json", key="sim_chrome_file"
            )
    else:
        critical = np.sum([seconds.sum(axis=0) for seconds in report.critical_s.values()], axis=0)
        waits = report.wait_s.sum(axis=0)
        ui.draw(figures.stragglers(critical, waits, report.rank_node, steps=report.steps, dark=dark), "sim_stragglers")
        st.caption("The critical path is the chain of work that ends with the step. A GPU that is on it for long holds "
                   "the others up: take experts off it. GPUs with long grey bars have room.")  # fmt: skip
    ui.notes(report.notes)
