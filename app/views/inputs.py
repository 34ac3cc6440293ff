"""Inputs: what runs where."""

from __future__ import annotations

import dash_files
import dash_state as state
import dash_ui as ui
import numpy as np
import streamlit as st

from moesim import figures
from moesim.base.arrays import digest
from moesim.base.errors import MoesimError
from moesim.base.units import show
from moesim.presets import PRESETS
from moesim.trace import PHASES, statistics
from moesim.trace.relations import domain_divergence, pair_lift, window_divergence

WINDOWS = 8

left, right = ui.header(
    "Inputs", "The traffic that is replayed and the cluster that it runs on. Everything else follows from these."
)


def take_uploads() -> None:
    """Read what was uploaded, once, and choose it."""
    for kind, key, target in (("trace", "up_trace", "trace"), ("trace", "up_held", "held"),
                              ("topology", "up_topology", "topology")):  # fmt: skip
        file = st.session_state.get(key)
        if file is None:
            st.session_state.pop(f"{key}_error", None)
            continue
        mark = (file.file_id, st.session_state.get("recorded"))
        if st.session_state.get(f"{key}_seen") == mark:
            continue
        st.session_state[f"{key}_seen"] = mark
        st.session_state.pop(f"{key}_error", None)
        try:
            data = file.getvalue()
            if kind == "trace":
                thing = dash_files.upload_trace(file.name, data, st.session_state.get("recorded") or None)
            else:
                thing = dash_files.upload_cluster(file.name, data)
            state.put(target, state.keep_upload(kind, file.name, thing))
        except MoesimError as error:
            st.session_state[f"{key}_error"] = str(error)


def follow_trace() -> None:
    """Let go of what belongs to the samples once another trace is chosen: who judges them, and the replayed dimensions.

    Otherwise a trace of one's own would be refused beside the samples' held-out traffic, or priced as another model.
    """
    chosen = state.get("trace")
    before, st.session_state["followed"] = st.session_state.get("followed", chosen), chosen
    if chosen == before or str(chosen).startswith("sample:"):
        return
    for key, own in (("held", state.REST), ("dims", state.OWN)):
        if state.get(key) == state.SHARED[key]:
            state.put(key, own)


take_uploads()
follow_trace()
with left:
    traces = state.choices("trace")
    topologies = state.choices("topology")
    if not traces:
        st.warning("There are no samples in this installation: upload a trace, or start with --data.")
    with st.container(border=True):
        st.markdown("**Traffic**")
        if traces:
            ui.pick("Fitted on", "trace", traces, help="Plans are made from this traffic.")
            ui.pick("Judged on", "held", {**traces, state.REST: state.REST}, default=state.REST,
                    help="Traffic that plans have not seen; every figure is about it.")  # fmt: skip
            if state.get("held") == state.REST:
                st.slider("Fitted part", 0.1, 0.9, step=0.05, key="fit", persist_state="session")
        ui.pick("Phase", "phase", [state.AUTO, *PHASES], help="As recorded: the first of these that the trace holds.")
        ui.number("Tokens of a GPU in a step", "tokens", 0, 65536, step=64,
                  help="0: as recorded, else 1024 in prefill and 128 in decode.")  # fmt: skip
        ui.number("Steps at most", "steps", 1, 256, help="Steps of each part that are looked at.")
        ui.pick("At the dimensions of", "dims", [state.OWN, *PRESETS],
                help="Replays the routing with the bytes and arithmetic of another model.")  # fmt: skip
    with st.container(border=True):
        st.markdown("**Cluster**")
        ui.pick("Topology", "topology", topologies)
        ui.number("Expert-parallel group (GPUs)", "ranks", 0, 16384, help="0: all GPUs of the cluster.")
        ui.pick("Network model", "network", ["bottleneck", "max-min"],
                help="bottleneck: the busiest link decides. max-min: flows share links fairly; slower.")  # fmt: skip
    with st.expander("Upload a trace or a topology", expanded=any(
        st.session_state.get(f"{key}_error") for key in ("up_trace", "up_held", "up_topology")
    )):  # fmt: skip
        st.selectbox("Recorded model", ["", *PRESETS], key="recorded", persist_state="session",
                     format_func=lambda name: name or "as the file says",
                     help="Where the file does not say which model it is of.")  # fmt: skip
        for label, key, kind in (("Trace to fit on", "up_trace", "trace"), ("Trace to judge on", "up_held", "trace"),
                                 ("Topology", "up_topology", "topology")):  # fmt: skip
            st.file_uploader(label, type=list(dash_files.SUFFIXES[kind]), key=key)
            if error := st.session_state.get(f"{key}_error"):
                st.error(error)

if not traces:
    st.stop()
with right:
    given = ui.inputs_or_stop()
    trace, cluster, dark = given.trace, given.cluster, state.dark()
    found = ui.ready(digest("statistics", trace.digest), "Statistics of the traffic", lambda job: statistics(trace))
    ids = trace.spec.layer_ids
    fastest: dict[str, float] = {}
    for tier, rate in zip(cluster.link_tier, cluster.link_bandwidth.tolist(), strict=True):
        fastest[tier] = max(rate, fastest.get(tier, 0.0))
    nic = next((fastest[tier] for tier in ("rail", "leaf") if tier in fastest and cluster.nodes > 1), None)
    inside = fastest.get("node")
    ui.context(given)
    ui.kpis([
        ("Model", f"{trace.spec.experts} experts", f"{trace.layers} MoE layers, top {trace.spec.top_k}",
         f"{trace.spec.name}: routed experts of a layer, MoE layers, experts that a token picks."),
        ("Traffic", f"{trace.tokens / 1e3:,.0f}k tokens", f"{len(np.unique(trace.request)):,} requests",
         "Tokens of the fitted trace, all phases."),
        ("Hottest expert", f"{np.nanmedian(found.max_over_mean):.1f}×", f"up to {np.nanmax(found.max_over_mean):.1f}×",
         "Load of a layer's busiest expert over the mean expert: median and largest over layers. 1 is balance."),
        ("Drift", f"{np.nanmedian(found.drift_bits):.4f} bits" if np.isfinite(found.drift_bits).any() else "unknown",
         "quarter to quarter", "Jensen-Shannon divergence of expert loads from one quarter of the trace to the next; "
         "0 is none. Large drift wants re-planning."),
        ("GPUs", f"{cluster.ranks} in {cluster.nodes} node{'s' if cluster.nodes > 1 else ''}",
         ", ".join(dict.fromkeys(cluster.device)), "GPUs of the expert-parallel group, and NVLink domains."),
        ("Network a GPU", show(nic, "bandwidth", 3) if nic else "one node",
         f"NVLink {show(inside, 'bandwidth', 3)}" if inside else "no NVLink",
         "Effective bandwidth of a NIC, per direction, and inside a node."),
    ])  # fmt: skip
    detail = ui.tabs("inputs_detail", ["Skew", "Drift", "Picked together", "Domains", "Cluster"])
    if detail == "Skew":
        ui.draw(figures.expert_loads(trace.loads, layer_ids=ids, dark=dark), "skew")
        st.caption("Red experts are hot. Where the left end of a row is far above 1, one GPU would do the work of "
                   "several: hot experts want copies.")  # fmt: skip
    elif detail == "Drift":
        names = [f"{i + 1}/{WINDOWS}" for i in range(WINDOWS)]
        bits = window_divergence(trace, WINDOWS)
        ui.draw(figures.divergence(bits, names, title="Drift: expert loads of one part of the trace against another",
                                   dark=dark), "drift")  # fmt: skip
        st.caption("Each row and column is an eighth of the trace in time. Near 0 everywhere: a plan made today still "
                   "fits tomorrow. Larger away from the diagonal: traffic drifts, re-plan more often.")  # fmt: skip
    elif detail == "Picked together":
        with st.columns([1, 2])[0]:
            layer = ui.pick("Layer", "layer_together", {i: f"decoder layer {name}" for i, name in enumerate(ids)})
        ui.draw(figures.coactivation(pair_lift(trace, layer), layer=ids[layer], loads=trace.loads[layer], dark=dark),
                "together")  # fmt: skip
        st.caption("Experts that tokens pick together belong on one node: the token then crosses the network once.")
    elif detail == "Domains":
        tokens = np.bincount(trace.domain, minlength=len(trace.domains))
        labelled = np.count_nonzero(tokens)
        held = np.sort(np.argsort(-tokens, kind="stable")[: min(labelled, ui.MOST_DOMAINS)])
        if labelled < 2:
            st.info("This trace labels no domains: record them to see how a plan fares for each.")
        else:
            with st.columns([1, 2])[0]:
                layer = ui.pick("Layer", "layer_domain", {i: f"decoder layer {name}" for i, name in enumerate(ids)})
            loads, names = trace.domain_loads()[:, layer], [trace.domains[i] for i in held]
            rest = np.setdiff1d(np.flatnonzero(tokens), held)
            rows, sizes, labels = loads[held], tokens[held], list(names)
            if len(rest):
                rows, sizes = np.vstack([rows, loads[rest].sum(axis=0)]), np.append(sizes, tokens[rest].sum())
                labels.append(f"{len(rest)} others")
            ui.draw(figures.domain_experts(rows, labels, sizes, layer=ids[layer], dark=dark), "domains")
            ui.draw(figures.divergence(domain_divergence(trace)[np.ix_(held, held)], names,
                                       title="How different the domains are", dark=dark), "domain_bits")  # fmt: skip
            if len(held) < labelled:
                st.caption(f"The {len(held)} largest of {labelled} domains.")
    else:
        ui.draw(figures.topology(cluster, dark=dark), "wiring")
        st.caption("From bottom to top: NVLink switch, GPUs, NICs, leaf or rail switches, spines. Hover a link for its "
                   "bandwidth.")  # fmt: skip
    ui.notes([*given.fitted.notes, *given.judged.notes, *given.costs.notes])
