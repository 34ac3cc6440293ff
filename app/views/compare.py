"""Compare: all plans on the same held-out steps, and the files to take away."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import dash_jobs
import dash_notes
import dash_state as state
import dash_ui as ui
import dash_work as work
import numpy as np
import streamlit as st

from moesim import figures
from moesim.base.arrays import digest
from moesim.base.errors import MoesimError
from moesim.base.units import count, show
from moesim.placement import PLACEMENT_FORMATS, fill_empty, migration
from moesim.placement.export import export
from moesim.placement.launch import engine_formats
from moesim.report import html
from moesim.study import facts_of, gather
from moesim.study.spread import by_domain

NOTHING = "no plan"
LEAST_TOKENS = 16
"""Tokens of a GPU in a step below which a domain says more about chance than about a plan."""
SUFFIX = {"trtllm": "yaml", "eplb": "npy", "csv": "csv", "vllm-41141": "jsonl"}

left, right = ui.header("Compare", "All plans on the same held-out steps: which is faster, by how much, what it costs, "
                        "and the map to take away.")  # fmt: skip
with right:
    given = ui.inputs_or_stop()
    base = ui.unplanned(given)
plans = {NOTHING: base, **state.fitting(given)}
with left:
    with st.container(border=True):
        others = [name for name in plans if name != NOTHING]
        # plans that came since the last look are shown; those that were put away stay away
        known = set(st.session_state.get("compared_known", ()))
        kept = [name for name in st.session_state.get("compared", []) if name in plans]
        state.put("compared", kept + [name for name in plans if name not in known])
        state.put("compared_known", list(plans))
        chosen = st.multiselect("Plans", list(plans), key="compared", persist_state="session")
        reference = ui.pick("Compared with", "cmp_reference", list(plans), help="Changes and moves count from it.")
        if not others:
            st.info("Only what runs without a plan is here. Search one on the page Plan, or add the baselines.")
        if st.button("Add the fast baselines", key="cmp_baselines", width="stretch", disabled=bool(state.running()),
                     help="Contiguous, round-robin, snake, LPT and EPLB; seconds."):  # fmt: skip
            slots = max(int(state.get("slots")), given.fewest_slots + 1)
            how = {"slots": slots, "policy": state.get("policy"), "transport": None, "deadline_s": 10.0, "seed": 0}
            key = work.planning_key(given, work.FAST, **how)
            dash_jobs.submit(key, "Planning the baselines", work.planning(given, work.FAST, **how))
            state.await_job(key)
            st.rerun()
    misfit = len(state.plans()) - len(others)
    if misfit:
        st.caption(f"{count(misfit, 'plan')} of other sizes than the inputs cannot be judged here.")
shown = {name: plan for name, plan in plans.items() if name in (chosen or [reference])}
with right:
    ui.context(given)
    judged = {}
    for name, plan in {reference: plans[reference], **shown}.items():
        judged[name] = ui.judged(name, plan, given)
    rows = {name: judged[name].row for name in shown}
    best = min(rows, key=lambda name: rows[name].step_s)
    old = judged[reference]
    moved = {name: ui.move(old, judged[name], given) for name in shown}
    ui.plan_cards(judged[best], old, moved[best])
    moved_bytes = {name: 0.0 if one is None else one.bytes for name, one in moved.items()}
    paid = {name: 0.0 if one is None else work.paid_after(one, old, judged[name]) for name, one in moved.items()}
    memory = {name: work.weights_bytes(plan, given) for name, plan in shown.items()}
    order = sorted(shown, key=lambda name: rows[name].step_s)
    faster = old.row.step_s / rows[best].step_s - 1
    st.markdown(
        f"**{best}** is fastest: {show(rows[best].step_s, 'time')} a step"
        + (f", {faster:.1%} more throughput than {reference}." if best != reference else ".")
    )
    table = {
        "plan": order,
        "step (ms)": [rows[n].step_s * 1e3 for n in order],
        "bound (ms)": [rows[n].bound_s * 1e3 for n in order],
        "gap": [rows[n].gap for n in order],
        "a2a (ms)": [rows[n].all_to_all_s * 1e3 for n in order],
        "experts (ms)": [rows[n].compute_s * 1e3 for n in order],
        "imbalance": [rows[n].batch_imbalance for n in order],
        "x-node (GB)": [rows[n].cross_node_bytes / 1e9 for n in order],
        "slots": [shown[n].placement.slots_per_rank for n in order],
        "move (GB)": [moved_bytes[n] / 1e9 for n in order],
        "paid after (s)": [paid[n] for n in order],
        "policy": [shown[n].policy for n in order],
    }
    formats = {key: st.column_config.NumberColumn(format=fmt) for key, fmt in (
        ("step (ms)", "%.3f"), ("bound (ms)", "%.3f"), ("gap", "percent"),
        ("a2a (ms)", "%.3f"), ("experts (ms)", "%.3f"), ("imbalance", "%.3f"), ("x-node (GB)", "%.2f"),
        ("move (GB)", "%.1f"), ("paid after (s)", "%.2f"))}  # fmt: skip
    st.dataframe(table, hide_index=True, column_config=formats)
    st.caption(
        "Held-out steps. bound: no placement is faster; gap: above it; a2a: all-to-all on the critical path; x-node: "
        f"bytes between nodes in a step; move: copied when coming from {reference}; paid after: seconds of serving "
        "until faster steps have made up for the move, in which serving is taken to stop (None: never)."
    )
    view = ui.tabs("cmp_detail", ["Step time", "Pareto", "Spread", "Expert diff", "Take away"])
    dark = state.dark()
    if view == "Step time":
        splits = {name: work.split(judged[name].report) for name in shown}
        ui.draw(figures.comparison(splits, bound_s=min(row.bound_s for row in rows.values()), dark=dark), "cmp_bars")
    elif view == "Pareto":
        with st.columns([1, 2])[0]:
            against = ui.pick("Against", "cmp_cost", ["memory", "migration"])
        if against == "memory":
            cost, label = {n: memory[n] / 1e9 for n in shown}, "expert weights (GB a GPU)"
        else:
            cost, label = {n: moved_bytes[n] / 1e9 for n in shown}, f"migration from {reference} (GB)"
        drawn = figures.tradeoff(
            [cost[n] for n in shown], [rows[n].step_s * 1e3 for n in shown], names=list(shown), x_title=label,
            y_title="step time on held-out steps (ms)", title=f"Step time against {label.split(' (')[0]}", dark=dark,
        )  # fmt: skip
        for name in ui.draw(drawn, "cmp_pareto", select=True):
            if name in state.plans() and st.session_state.get("picked") != name:
                state.put("picked", name)
                state.look_at(name)
                st.toast(f"**{name}** is the plan that all pages show now.")
        st.caption("Filled marks are worth a look: for each of them, anything cheaper is slower. A click on a plan "
                   "shows it on all pages.")  # fmt: skip
    elif view == "Spread":
        steps = {n: judged[n].report.step_s * 1e3 for n in shown}
        number = len(given.judged)
        ui.draw(figures.spread(steps, [str(i) for i in range(number)], title="Step time, batch by batch", item="step",
                               value_label="step time (ms)", reading=f" ms; {count(number, 'held-out step')}",
                               dark=dark), "cmp_batches")  # fmt: skip
        held = given.judged.trace
        sizes = np.bincount(held.domain[held.phase == given.judged.phase[0]], minlength=len(held.domains))
        least = min(LEAST_TOKENS, given.judged.tokens_per_rank or LEAST_TOKENS)
        large, labelled = int((sizes >= least * given.cluster.ranks).sum()), int((sizes > 0).sum())
        if labelled < 2:
            st.info("This traffic labels no domains, so there is no spread by domain.")
        elif large < 2:
            st.info(f"{count(large, 'domain')} of {labelled} fill a step of {least} tokens a GPU, too few for a spread "
                    "by domain: record more, or choose a smaller group.")  # fmt: skip
        else:
            found = {
                n: ui.ready(digest("domains", plan.digest, given.digest), f"{n}, domain by domain",
                            lambda job, plan=plan: by_domain(plan, given.judged, given.cluster, given.costs,
                                                             dims=given.dims, least_tokens=least))
                for n, plan in shown.items()
            }  # fmt: skip
            first = next(iter(found.values()))
            ui.draw(figures.spread({n: [one.step_s * 1e3 for one in each] for n, each in found.items()},
                                   [one.domain for one in first], title="Step time if all traffic were of one domain",
                                   item="domain", value_label="step time (ms)",
                                   reading=f" ms; steps of {count(first[0].tokens_per_rank, 'token')} a GPU",
                                   dark=dark), "cmp_domains")  # fmt: skip
            if large < labelled:
                st.caption(f"{large} of {labelled} domains: the others do not fill a step of {least} tokens a GPU.")
    elif view == "Expert diff":
        a, b, c = st.columns(3)
        with a:
            one = ui.pick("From", "diff_from", list(plans), default=reference)
        with b:
            two = ui.pick("To", "diff_to", list(plans), default=best)
        ids = given.trace.spec.layer_ids
        with c:
            layer = ui.pick("Layer", "diff_layer", {i: f"decoder layer {name}" for i, name in enumerate(ids)})
        node = given.cluster.node
        move = migration(plans[one].placement, plans[two].placement, node)
        size = given.costs.spec.expert_bytes
        st.markdown(
            f"From **{one}** to **{two}**: {count(len(move), 'expert')} to send in "
            f"{count(given.trace.layers, 'layer')} ({show(move.bytes(size), 'bytes')}), {move.between_nodes(node):,} "
            f"of them between nodes; at most {show(float(move.received.sum(axis=0).max() * size), 'bytes')} to one "
            "GPU."
        )
        ui.draw(figures.placement_diff(plans[one].placement, plans[two].placement, layer, node, names=(one, two),
                                       layer_name=ids[layer], dark=dark), "cmp_diff")  # fmt: skip
        lines = ["layer,expert,from_rank,to_rank"]
        lines += [f"{ids[w]},{e},{s},{t}" for w, e, s, t in zip(move.layer, move.expert, move.source, move.target,
                                                                strict=True)]  # fmt: skip
        st.download_button("Download the moves as CSV", "\n".join(lines) + "\n", "moves.csv", "text/csv", key="moves")
    else:
        names = list(plans)
        one, two = st.columns(2)
        with one:
            which = ui.pick("Plan to take away", "out_plan", names, default=best)
        with two:
            engines = engine_formats()
            to = ui.pick(
                "Format", "out_format", [*engines, *[n for n in PLACEMENT_FORMATS.names() if n not in engines]]
            )
        any_policy = st.checkbox(
            "Accept whatever dispatch policy the engine has", key="out_any", persist_state="session",
            help="Else the map is refused where the engine dispatches otherwise than the plan assumes.",
        )  # fmt: skip
        plan = plans[which]
        placement = plan.placement
        if placement.empty_slots and to in engines:
            placement = fill_empty(placement, given.fitted.trace.loads)
            st.caption(f"Further copies of hot experts fill {count(plan.placement.empty_slots, 'empty slot')}: "
                       "the engine needs an expert in every slot.")  # fmt: skip
        name = f"experts.{SUFFIX.get(to, 'json')}"
        try:
            with tempfile.TemporaryDirectory(prefix="moesim-export-") as folder:
                path = Path(folder, name)
                launch = export(placement, path, to, spec=given.trace.spec, policy=None if any_policy else plan.policy,
                                node=given.cluster.node)  # fmt: skip
                data = path.read_bytes()
        except MoesimError as error:
            st.error(str(error))
        else:
            st.download_button(f"Download {name} for {to}", data, name, "application/octet-stream", type="primary",
                               key="out_map")  # fmt: skip
            if launch is not None:
                st.markdown(f"Start **{launch.engine}** with it:")
                st.code(launch.command_line.replace(str(path), name), language="bash", wrap_lines=True)
                if launch.config:
                    st.markdown("Configuration file:")
                    st.code(launch.config.replace(str(path), name), language="yaml")
                for note in launch.notes:
                    st.caption(f"• {note}")
        st.divider()
        three, four = st.columns(2)
        with three:
            st.download_button("Download the plan (JSON)", json.dumps(plan.to_dict(), allow_nan=False) + "\n",
                               f"{plan.solver}.json", "application/json", key="out_json", width="stretch")  # fmt: skip
        with four:
            key = digest("report", given.digest, sorted((n, p.digest) for n, p in shown.items()), dark)
            if st.button("Prepare the HTML report", key="out_report", width="stretch"):
                state.put("report_of", key)
            if st.session_state.get("report_of") == key:

                def report(job: dash_jobs.Job) -> str:
                    slots = plans[best].placement.slots_per_rank
                    facts = facts_of(given.trace, given.held_out, given.cluster, given.costs, given.fitted,
                                     given.judged, slots, given.fit, int(state.SHARED["seed"]))  # fmt: skip
                    found = gather({n: judged[n] for n in shown}, facts, given.fitted, given.judged, given.cluster,
                                   given.costs, held_out=given.held_out is not None)  # fmt: skip
                    return html(found, dark=dark)

                text = ui.ready(key, "Writing the report", report)
                st.download_button("Download report.html", text, "report.html", "text/html", type="primary",
                                   key="out_report_file", width="stretch")  # fmt: skip
    ui.notes(dash_notes.of_plans({name: judged[name].report.notes for name in shown}))
