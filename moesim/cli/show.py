"""Facts for people: values with the unit that follows from their key, nested ones as tables."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from moesim.cli.screen import print_facts, print_json, print_notes, print_table, stdout


def show_facts(facts: Mapping[str, Any], json: bool) -> None:
    """Print facts as JSON, or for people: plain values first, tables and maps below."""
    if json:
        print_json(facts)
        return
    maps = {key: value for key, value in facts.items() if isinstance(value, Mapping)}
    plain = [key for key in facts if key not in maps and key != "notes"]
    print_facts((key, text(key, facts[key])) for key in plain)
    for key, value in maps.items():
        stdout().print()
        if _is_table(value):
            columns = list(next(iter(value.values())))
            cells = [[name, *(text(column, row[column]) for column in columns)] for name, row in value.items()]
            print_table([key, *columns], cells)
        else:
            print_facts(((name, text(name, item)) for name, item in value.items()), title=key)
    print_notes(facts.get("notes", ()))


def _is_table(value: Mapping[str, Any]) -> bool:
    rows = list(value.values())
    return bool(rows) and all(isinstance(row, Mapping) and set(row) == set(rows[0]) for row in rows)


def text(key: str, value: Any) -> str:
    """Return a value as people read it; the unit follows from the key."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return _number(key, value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {text(name, item)}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        runs = [(len(list(run)), item) for item, run in itertools.groupby(text(key, item) for item in value)]
        # the two ends of a range are often the same
        return ", ".join(item if times == 1 or len(value) == 2 else f"{times} x {item}" for times, item in runs) or "-"
    return str(value)


def _number(key: str, value: float) -> str:
    from moesim.base.units import show

    if key.endswith("parameters"):
        return f"{value / 1e9:,.2f} billion"
    if "bandwidth" in key or key in ("nominal", "bisection_nominal"):
        return show(float(value), "bandwidth")
    if key.startswith("flops"):
        return show(float(value), "flops")
    if key.endswith("_bytes"):
        return show(float(value), "bytes")
    if isinstance(value, int):
        return f"{value:,}"
    if key == "gap":
        return f"{value:.1%}"
    return show(value, "time") if key.endswith("_s") else f"{value:.4g}"
