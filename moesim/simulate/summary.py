"""A report as one readable screen of plain text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moesim.base.units import count, show

if TYPE_CHECKING:
    from moesim.simulate.report import Report


def summary(report: Report) -> str:
    """Return the report as plain text, with units, at most about thirty lines."""
    facts = report.facts
    nodes = len(report.node_bytes)
    step = report.mean_step_s
    lines = [
        f"{facts.get('model', 'model')} on {facts.get('topology', 'cluster')}: {count(len(report.rank_node), 'rank')}, "
        f"{count(nodes, 'node')}",
        f"{count(report.steps, 'step')} of {facts.get('phase', 'mixed')}, "
        f"{_count(report.step_tokens.mean())} tokens each; "
        + ", ".join(str(facts[key]) for key in ("policy", "transport", "network", "schedule") if key in facts),
        "",
        _row("step", f"{show(step, 'time')}", f"p50 {show(report.p50_step_s, 'time')}, "
             f"p99 {show(report.p99_step_s, 'time')}"),
        _row("throughput", f"{_count(report.tokens_per_s)} tokens/s",
             f"{_count(report.tokens_per_s / len(report.rank_node))} a rank"),
        _row("whole model", show(report.model_step_s, "time"),
             f"a step; {_count(report.tokens_per_s_per_gpu)} tokens/s a GPU"),
        _row("  all-to-all", show(report.all_to_all_s, "time"), _share(report.all_to_all_s, step)),
        _row("  experts", show(report.compute_s, "time"), _share(report.compute_s, step)),
        _row("  attention", show(report.attention_s, "time"), _share(report.attention_s, step)),
        _row("waiting", show(report.mean_wait_s, "time"), "mean of a rank, for others"),
        _row("imbalance", f"{report.imbalance:.3f}", f"whole window; {report.batch_imbalance:.3f} step by step"),
        _row("between nodes", show(report.cross_node_bytes, "bytes"), "a step"),
    ]  # fmt: skip
    used = report.link_utilisation
    if len(used) and used.max() > 0:
        link = int(np.argmax(used))
        lines.append(_row("busiest link", f"{used[link]:.1%}", report.link_name[link]))
    lines.append(_row("bottleneck", report.bottleneck, ""))
    if report.seen.any():
        lines.append(
            _row("seen before", f"{int(report.seen.sum())} of {count(report.steps, 'step')}", "the plan was fitted on")
        )
    lines += [f"note: {note}" for note in report.notes]
    return "\n".join(lines)


def _row(name: str, value: str, remark: str) -> str:
    return f"{name:<14} {value:<18} {remark}".rstrip()


def _share(part_s: float, whole_s: float) -> str:
    return f"{part_s / whole_s:.1%} of the critical path" if whole_s else ""


def _count(value: float) -> str:
    return f"{value:,.0f}"
