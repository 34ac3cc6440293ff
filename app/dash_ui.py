"""What every page is put together from: header, controls that remember, KPI row, figures, work that may take long."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import dash_jobs
import dash_notes
import dash_state as state
import dash_work as work
import plotly.graph_objects as go
import streamlit as st

from moesim import figures
from moesim.base.errors import MoesimError
from moesim.base.units import count, show
from moesim.solve import Plan
from moesim.solve.moving import Move
from moesim.study import Judged

MOST_DOMAINS = 16
"""Domains that are shown: of more, the largest."""
_PATIENCE_S = 1.2
"""Seconds that a page waits for work before it shows a progress line instead; most work here is done by then."""
_STYLE = """<style>
.stMainBlockContainer { padding: 3.9rem 1.6rem 2rem; max-width: 1820px; }
[data-testid="stMetric"] { padding: 8px 10px 8px 12px; height: 100%; min-height: 92px; }
[data-testid="stMetric"] > div { padding: 0; }
[data-testid="stMetricValue"], [data-testid="stMetricValue"] > div { font-size: 1.22rem; line-height: 1.4;
  overflow: visible; white-space: normal; text-overflow: clip; }
[data-testid="stMetricLabel"] p { font-size: 0.78rem; white-space: normal; overflow: visible; text-overflow: clip; }
[data-testid="stMetricDelta"], [data-testid="stMetricDelta"] > div { font-size: 0.75rem; white-space: normal;
  overflow: visible; text-overflow: clip; }
[data-testid="stMetricDelta"] { padding: 0 4px; }
.stMainBlockContainer [data-testid="stVerticalBlock"] { gap: 0.6rem; }
/* in a narrow window key figures take two rows rather than be cut, and controls keep a width that can be read */
@media (max-width: 1240px) {
  [data-testid="stHorizontalBlock"]:has(> [data-testid="stColumn"] [data-testid="stMetric"]):not(:has(
    [data-testid="stHorizontalBlock"])) { flex-wrap: wrap; }
  [data-testid="stHorizontalBlock"]:not(:has([data-testid="stHorizontalBlock"])) > [data-testid="stColumn"]:has(
    [data-testid="stMetric"]) { min-width: 10rem; }
}
@media (min-width: 800px) and (max-width: 1240px) {
  [data-testid="stHorizontalBlock"]:has(.controls) { flex-wrap: nowrap; }
  [data-testid="stColumn"]:has(.controls) { min-width: 15.5rem; }
  [data-testid="stHorizontalBlock"]:has(.controls) > [data-testid="stColumn"]:last-child { min-width: 0; }
}
.figure-title { margin: 0.3rem 0 0; } .figure-title b { display: block; font-size: 1rem; }
.figure-title span { font-size: 0.8rem; }
h1 { font-size: 1.45rem !important; padding: 0 !important; }
[data-testid="stHeaderActionElements"] { display: none; }
</style>"""
_CONFIG = {"displaylogo": False, "displayModeBar": False, "responsive": True}


def look() -> None:
    """Set the density of all pages."""
    st.html(_STYLE)


def header(title: str, sentence: str) -> tuple[Any, Any]:
    """Write the head of a page and return its two columns: controls, results."""
    st.title(title)
    st.caption(sentence)
    return columns()


def columns() -> tuple[Any, Any]:
    """Return the two columns of a page: controls, results."""
    left, right = st.columns([1, 3.3], gap="medium")
    left.html('<span class="controls"></span>')
    return left, right


def context(given: state.Inputs) -> None:
    """Say in one line what the numbers on this page are about."""
    size = given.judged.tokens_per_rank
    tokens = f" of {count(size, 'token')} a GPU" if size else ""
    phase = ("prefill", "decode", "train")[int(given.judged.phase[0])]
    st.caption(
        f"**{given.costs.spec.name}** on **{given.cluster.name}**, {count(given.cluster.ranks, 'GPU')} in "
        f"{count(given.cluster.nodes, 'node')}; judged on {count(len(given.judged), f'held-out {phase} step')}{tokens}"
    )


def inputs_or_stop() -> state.Inputs:
    """Return the inputs, or say what is wrong with them and end the page."""
    hint = "Change the choice on the page Inputs."
    try:
        key, work = state.inputs()
    except MoesimError as error:
        st.error(str(error))
        st.info(hint)
        st.stop()
    found: state.Inputs = ready(key, "Reading the inputs", work, hint=hint)
    return found


# --- controls ----------------------------------------------------------------------------------------------------


def pick(label: str, key: str, options: Sequence[Any] | Mapping[Any, str], *, default: Any = None, **more: Any) -> Any:
    """Draw a select box whose choice survives page switches; a choice that is no longer offered becomes the default."""
    values = list(options)
    if st.session_state.get(key) not in values:
        st.session_state[key] = default if default in values else values[0]
    names = options if isinstance(options, Mapping) else None
    return st.selectbox(
        label,
        values,
        key=key,
        persist_state="session",
        format_func=lambda one: names[one] if names else str(one),
        **more,
    )


def number(label: str, key: str, low: float, high: float, **more: Any) -> Any:
    """Draw a number field whose value survives page switches."""
    value = st.session_state.get(key, state.SHARED.get(key, low))
    st.session_state[key] = min(max(value, type(value)(low)), type(value)(high))
    return st.number_input(label, min_value=type(value)(low), max_value=type(value)(high), key=key,
                           persist_state="session", **more)  # fmt: skip


def tabs(key: str, options: Sequence[str]) -> str:
    """Draw a row of choices, of which only the chosen one is computed."""
    if st.session_state.get(key) not in options:
        st.session_state[key] = options[0]
    return str(st.segmented_control("Detail", options, key=key, required=True, label_visibility="collapsed",
                                    persist_state="session"))  # fmt: skip


# --- numbers and figures -----------------------------------------------------------------------------------------


def kpis(cards: Sequence[tuple[str, str, str | None, str]]) -> None:
    """Draw the row of key figures: label, value, change against the baseline, help. Less is better for all changes."""
    for column, (label, value, delta, text) in zip(st.columns(len(cards), gap="small"), cards, strict=True):
        # a card without a change is lower than its neighbours: a blank keeps them level
        column.metric(label, value, delta or None, delta_color="inverse" if delta and delta[0] in "+-" else "off",
                      delta_arrow="auto" if delta and delta[0] in "+-" else "off", border=True, help=text)  # fmt: skip


def change(value: float, before: float) -> str:
    """Return the change of a value as people read it."""
    if before == 0:
        return "none before" if value else "same"
    part = value / before - 1
    return "same" if abs(part) < 5e-4 else f"{part:+.1%}"


def move(before: Judged, after: Judged, given: state.Inputs) -> Move | None:
    """Return what it takes to go from one plan to another, priced once, in the background; None: they are the same."""
    if before.plan.placement.digest == after.plan.placement.digest:
        return None
    key = work.move_key(before.plan, after.plan, given)
    found: Move = ready(key, "Pricing the move", work.moving(before.plan, after.plan, given))
    return found


def plan_cards(one: Judged, before: Judged | None, moved: Move | None) -> None:
    """Draw the key figures of a judged plan, against the plan before it."""
    row, report = one.row, one.report
    old = before.row if before is not None and before.plan is not one.plan else None
    against = f" vs {old.solver}" if old else ""

    def delta(name: str) -> str | None:
        return None if old is None else change(getattr(row, name), getattr(old, name)) + against

    p99 = None if old is None or before is None else change(report.p99_step_s, before.report.p99_step_s) + against
    cards = [
        ("Step time, mean", show(row.step_s, "time"), delta("step_s"),
         "Mean seconds of a held-out step, from its start until the last GPU has its last result. Lower is better."),
        ("Step time, p99", show(report.p99_step_s, "time"), p99, "99 of 100 held-out steps are at least this fast."),
        ("Load imbalance", f"{row.batch_imbalance:.2f}×", delta("batch_imbalance"),
         "Tokens of the busiest GPU over the mean, batch by batch, mean over layers. 1 is perfect balance."),
        ("Between nodes", show(row.cross_node_bytes, "bytes", 3), delta("cross_node_bytes"),
         "Bytes that leave their node in a mean step, dispatch and combine together."),
        ("Above the bound", f"{row.gap:.0%}", None if old is None else f"bound {show(row.bound_s, 'time')}",
         "How far the step is above a time that provably no placement beats; the true optimum lies between."),
    ]  # fmt: skip
    if moved is not None and before is not None:
        even = work.paid_after(moved, before, one)
        paid = "never pays off" if even is None else f"paid off after {show(even, 'time', 2)}"
        cards.append(("Experts to move", f"{moved.moves:,}", paid,
                      "Expert copies that GPUs must receive to go from the plan before to this one: "
                      f"{show(moved.bytes, 'bytes', 3)} in {show(moved.seconds, 'time', 3)}, as `moesim migrate` "
                      "schedules them. Serving is taken to stop meanwhile; after so long faster steps have made up "
                      "for it."))  # fmt: skip
    kpis(cards)


def draw(figure: go.Figure, key: str, *, select: bool = False) -> list[Any]:
    """Show a figure, its title as text of the page; those who cannot see it hear title and subtitle.

    With ``select`` a click on a point runs the page again; returned is the custom data of what is selected.
    """
    title, subtitle, bare = figures.untitled(figure)
    st.html(f'<p class="figure-title"><b>{escape(title)}</b><span>{escape(subtitle)}</span></p>')
    more: dict[str, Any] = {"on_select": "rerun", "selection_mode": "points"} if select else {}
    found = st.plotly_chart(
        bare, key=key, theme=None, width="stretch", config=_CONFIG, alt=f"{title}: {subtitle}", **more
    )
    picked = [point.get("customdata") for point in found.selection.points] if select else []
    return [one[0] if isinstance(one, list) else one for one in picked]


def notes(lines: Sequence[str]) -> None:
    """Show what a reader must know before trusting the numbers."""
    few = dash_notes.merged(lines)
    if few:
        with st.expander(f"Before you trust these numbers ({len(few)} notes)"):
            st.markdown("\n".join(f"* {line}" for line in few))


# --- long work ---------------------------------------------------------------------------------------------------


def ready(
    key: str, label: str, work: Callable[[dash_jobs.Job], Any], *, hint: str = "", limit_s: float | None = None
) -> Any:
    """Return the result of work, computed once; while it lasts longer than a moment the page shows how far it is.

    The work runs in the background and is not lost when the page is left. Where it fails, its error is shown and the
    page ends.
    """
    job = dash_jobs.submit(key, label, work, limit_s)
    job.finished.wait(_PATIENCE_S)
    if job.running:
        _wait(key)
        st.stop()
    if job.error:
        st.error(job.error)
        if hint:
            st.info(hint)
        st.stop()
    return job.result


@st.fragment(run_every=1.0)
def _wait(key: str) -> None:
    job = dash_jobs.find(key)
    if job is None or not job.running:
        st.rerun()
        return
    st.progress(job.share, text=f"{job.label}: {job.stage}, {job.elapsed_s:.0f} s")


def unplanned(given: state.Inputs) -> Plan:
    """Return what runs without a plan: experts in order, no copies."""
    how = {"slots": given.fewest_slots, "policy": "nearest", "transport": None, "deadline_s": 10.0, "seed": 0}
    key = work.planning_key(given, (state.BASELINE,), **how)
    found = ready(key, "The placement without a plan", work.planning(given, (state.BASELINE,), **how))
    return found[state.BASELINE]


def judged(name: str, plan: Plan, given: state.Inputs) -> Judged:
    """Return what a plan is worth on held-out steps; judged once, in the background."""
    key = state.judged_key(name, plan, given)
    return ready(key, f"Judging {name}", work.judging(name, plan, given))


def watch_jobs(page: str) -> None:
    """Say on every page but the one that shows it in full that a plan is being made."""
    error = st.session_state.pop("last_error", None)
    if error:
        st.error(error)
    if page != "Plan" and state.running():
        _running_line()


@st.fragment(run_every=2.0)
def _running_line() -> None:
    jobs = state.running()
    if not jobs:
        st.rerun()
        return
    for job in jobs:
        best = min((score for curve in job.curves.values() for _, score in curve), default=None)
        so_far = f", best so far {show(best, 'time')} a step" if best is not None else ""
        st.info(f"{job.label}: {job.stage}, {job.elapsed_s:.0f} s{so_far}. It goes on while you look around; "
                "the page Plan shows it.")  # fmt: skip
