"""A comparison as one HTML file that needs nothing else: table, figures, notes, and how to get them again."""

from __future__ import annotations

import itertools
import platform
from collections.abc import Sequence
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from string import Template
from typing import Any, Final

from moesim.base.files import write_text
from moesim.base.units import count, show
from moesim.base.version import VERSION
from moesim.study import Comparison
from moesim.study.judge import columns

_MOST_BARS: Final = 6000
"""Bars of the timeline: more make a page that scrolls badly."""
_MOST_LAYERS: Final = 6
"""Layers of the timeline: more cannot be told apart on a laptop."""
_LIBRARIES: Final = ("numpy", "scipy", "numba", "simpy", "ortools", "plotly")

_PAGE: Final = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<link rel="icon" href="data:,">
<style>
:root { color-scheme: $scheme; --ink: $ink; --paper: $paper; --line: $line; --soft: $soft; --quiet: $quiet; }
body { margin: 0 auto; max-width: 1180px; padding: 24px 28px 64px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 26px; margin: 8px 0 4px; } h2 { font-size: 19px; margin: 40px 0 8px; }
h3 { font-size: 16px; margin: 20px 0 0; }
p { margin: 6px 0; } .quiet { color: var(--quiet); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px; margin: 20px 0; }
.card { border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; }
.card b { display: block; font-size: 22px; line-height: 1.3; } .card span { color: var(--quiet); font-size: 13px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 9px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
td.reason { text-align: left; white-space: normal; color: var(--quiet); }
th { color: var(--quiet); font-weight: 500; font-size: 13px; }
th:first-child, td:first-child { text-align: left; } tr.best td { font-weight: 650; background: var(--soft); }
table.text td { white-space: normal; text-align: left; vertical-align: top; }
table.text td:first-child { width: 220px; }
pre { background: var(--soft); padding: 10px 14px; border-radius: 8px; white-space: pre-wrap; font-size: 13px; }
details summary { cursor: pointer; margin: 12px 0; } li { margin: 3px 0; }
@media print { .plotly-graph-div, .card, tr { break-inside: avoid; } h2, h3, h3 + .quiet { break-after: avoid; } }
</style>
<script>$plotly</script>
</head>
<body>
$body
</body>
</html>
""")

_COLOURS: Final = {
    False: {"scheme": "light", "soft": "#f4f6f8", "quiet": "#626a76"},
    True: {"scheme": "dark", "soft": "#181c24", "quiet": "#9aa3af"},
}


def write_report(found: Comparison, path: str | Path, *, commands: Sequence[str] = (), dark: bool = False) -> None:
    """Write a comparison as one HTML file; it loads nothing from elsewhere.

    Parameters
    ----------
    found
        The comparison.
    path
        File to write.
    commands
        Command lines that give the same numbers again.
    dark
        Whether the page is dark.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    write_text(path, html(found, commands=commands, dark=dark))


def html(found: Comparison, *, commands: Sequence[str] = (), dark: bool = False) -> str:
    """Return the report as text; the same comparison and commands give the same bytes."""
    body = [
        _head(found),
        _table(found),
        _notes(found),
        *_figures(found, dark),
        _provenance(found, commands),
    ]
    title = f"moesim: {found.facts['settings']['model']} on {found.facts['topology']['name']}"
    return page(title, "\n".join(body), dark=dark)


def page(title: str, body: str, *, dark: bool = False) -> str:
    """Return a whole HTML page that loads nothing from elsewhere; ``body`` is HTML, ``title`` is text."""
    from plotly.offline import get_plotlyjs

    from moesim.figures import theme

    colours = _COLOURS[dark] | {"ink": theme.ink(dark), "paper": theme.paper(dark), "line": theme.grid(dark)}
    return _PAGE.substitute(colours, title=escape(title), plotly=get_plotlyjs(), body=body)


def _head(found: Comparison) -> str:
    settings, topology, best = found.facts["settings"], found.facts["topology"], found.best
    others = [row for row in found.rows if row.solver != best.solver]
    second = min(others, key=lambda row: row.step_s, default=None)
    lead = f"<b>{escape(best.solver)}</b> is fastest on held-out traffic: {show(best.step_s, 'time')} a step"
    if second is not None:
        lead += f", {_less(best.step_s, second.step_s)} than the next best ({escape(second.solver)})"
    baseline = next((row for row in found.rows if row.solver == "contiguous"), found.rows[0])
    name = escape(baseline.solver)
    cards = [
        (show(best.step_s, "time"), f"step, {_less(best.step_s, baseline.step_s)} than {name}"),
        (f"{best.gap:.1%}", f"above the bound of {show(found.bound_s, 'time')} that no placement beats"),
        (
            f"{best.batch_imbalance:.3f}",
            f"max / mean load of a GPU in a step; {name}: {baseline.batch_imbalance:.3f}",
        ),
        (
            show(best.cross_node_bytes, "bytes"),
            f"between nodes in a step; {name}: {show(baseline.cross_node_bytes, 'bytes')}",
        ),
    ]
    report = found.reports[best.solver]
    cells = "".join(f'<div class="card"><b>{value}</b><span>{text}</span></div>' for value, text in cards)
    nodes = count(topology["nodes"], "node")
    steps = count(settings["held_out_steps"], f"held-out {settings['phase']} step")
    return f"""<h1>{escape(settings["model"])} on {escape(topology["name"])}</h1>
<p class="quiet">{count(topology["ranks"], "GPU")} in {nodes}, {count(settings["slots_per_rank"], "expert slot")} a GPU
and layer; mean of {escape(steps)} of
{report.step_tokens.mean():,.0f} tokens; dispatch policy {escape(best.policy)}, transport {escape(best.transport)}</p>
<p>{lead}. Its bottleneck: {escape(report.bottleneck)}.</p>
<div class="cards">{cells}</div>"""


def _less(value: float, other: float) -> str:
    change = value / other - 1
    return f"{abs(change):.1%} {'less' if change <= 0 else 'more'}"


def _table(found: Comparison) -> str:
    table = columns(found.rows)
    lines = []
    for row, cells in zip(found.rows, zip(*table.values(), strict=True), strict=True):
        mark = ' class="best"' if row.solver == found.best.solver else ""
        lines.append(f"<tr{mark}>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    lines += [
        f'<tr><td>{escape(solver)}</td><td class="reason" colspan="{len(table) - 1}">cannot run here: '
        f"{escape(reason)}</td></tr>"
        for solver, reason in found.not_run.items()
    ]
    titles = "".join(f"<th>{title}</th>" for title in table)
    return f"""<h2>All solvers on the same held-out steps</h2>
<div class="wide"><table><thead><tr>{titles}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>
<p class="quiet">Plans were fitted on other traffic than they are judged on; only "fit step" is on the
former. All-to-all and experts are their shares of the critical path. Imbalance is max / mean tokens of a GPU, mean over
layers: summed over the window, and batch by batch, which is what a step feels.</p>"""


def _notes(found: Comparison) -> str:
    if not found.notes:
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in found.notes)
    return f"<h2>Before you trust these numbers</h2><ul>{items}</ul>"


def _figures(found: Comparison, dark: bool) -> list[str]:
    from moesim import figures
    from moesim.simulate.phases import PHASES

    best = found.reports[found.best.solver]
    baseline = next((row.solver for row in found.rows if row.solver == "contiguous"), found.rows[0].solver)
    ids = found.costs.spec.layer_ids
    splits = {
        name: {phase: float(seconds.sum()) / report.steps for phase, seconds in report.critical_s.items()}
        for name, report in found.reports.items()
    }
    number = itertools.count(1)

    def draw(figure: Any) -> str:
        config = {"displaylogo": False, "responsive": True, "displayModeBar": False}
        title, subtitle, bare = figures.untitled(figure)
        text: str = bare.to_html(
            full_html=False,
            include_plotlyjs=False,
            include_mathjax=False,
            config=config,
            div_id=f"figure-{next(number)}",
        )
        return f'<h3>{escape(title)}</h3>\n<p class="quiet">{escape(subtitle)}</p>\n{text}'

    out = ["<h2>How much faster</h2>", draw(figures.comparison(splits, bound_s=found.bound_s, dark=dark))]
    out += ["<h2>Who is overloaded</h2>"]
    shown = list(dict.fromkeys([baseline, found.best.solver]))
    limit = max(figures.largest_ratio(found.reports[name].tokens) for name in shown)
    for name in shown:
        report = found.reports[name]
        title = f"Load of every rank in every layer: {name}"
        heat = figures.load_heatmap(report.tokens, report.rank_node, layer_ids=ids, title=title, limit=limit, dark=dark)
        out.append(draw(heat))
    out += [f"<h2>Where bytes cross: {escape(found.best.solver)}</h2>"]
    out.append(draw(figures.topology(found.cluster, best.link_utilisation, dark=dark)))
    if found.cluster.nodes > 1:
        out.append(draw(figures.node_traffic(best.node_bytes, steps=best.steps, dark=dark)))
    out += [f"<h2>Why a step takes that long: {escape(found.best.solver)}</h2>"]
    out.append(draw(figures.layer_split(best.layer_split_s, layer_ids=ids, dark=dark)))
    if best.spans is not None:
        layers = max(1, min(len(ids), _MOST_LAYERS, _MOST_BARS // (len(best.rank_node) * (len(PHASES) + 1))))
        out.append(draw(figures.timeline(best.spans, PHASES, layers=(0, layers), layer_ids=ids, dark=dark)))
    out += ["<h2>The routing that was replayed</h2>"]
    out.append(draw(figures.expert_loads(found.judged.trace.loads, layer_ids=ids, dark=dark)))
    return out


def _provenance(found: Comparison, commands: Sequence[str]) -> str:
    facts = found.facts
    plan = found.plans[found.best.solver]
    rows = [
        ("moesim", f"{VERSION}, Python {platform.python_version()}, " + ", ".join(_versions())),
        ("trace", f"{facts['trace']['model']}, {facts['trace']['tokens']:,} tokens, digest {facts['trace']['digest']}"),
        ("held-out trace", f"digest {found.judged.trace.digest}, steps {found.judged.digest}"),
        ("topology", f"{facts['topology']['name']}, digest {facts['topology']['digest']}"),
        ("plan", f"{plan.solver}, digest {plan.digest}, placement {plan.placement.digest}"),
        ("seed", str(facts["settings"]["seed"])),
    ]
    table = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in rows)
    sources = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(source)}</td></tr>"
        for name, source in sorted(found.costs.sources.items())
    )
    run = f"<p>The same numbers again:</p><pre>{escape(chr(10).join(commands))}</pre>" if commands else ""
    return f"""<h2>Where this comes from</h2>
<table class="text"><tbody>{table}</tbody></table>{run}
<details><summary>Where every constant comes from ({len(found.costs.sources)})</summary>
<table class="text"><tbody>{sources}</tbody></table></details>"""


def _versions() -> list[str]:
    found = []
    for name in _LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found
