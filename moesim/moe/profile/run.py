"""A profile: everything measured once, written down at once, gone on with after a kill, and made into cost tables."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from moesim.base.errors import InputError
from moesim.base.files import write_text
from moesim.moe.profile import others
from moesim.moe.profile.ceilings import ceilings
from moesim.moe.profile.device import Device, find_device, provenance
from moesim.moe.profile.experts import Case, kernels_of, measure
from moesim.moe.profile.grid import ACTIVE, COARSE, MODELS, TOKENS, cases, shape_of
from moesim.moe.profile.tables import cost_tables, summary
from moesim.moe.profile.timing import Clock

SCHEMA: Final = 1
Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Parameters
    ----------
    models
        Shapes: presets, or `bundled`.
    tokens, active
        Tokens per expert and active experts; coarse values first, since a budget may end the run.
    seconds
        How long one case is measured, about.
    minutes
        Time for everything; what is not measured then is left out, and the profile says so.
    small
        Try the command out: ceilings of a size that a CPU manages.
    """

    models: tuple[str, ...] = MODELS
    tokens: tuple[int, ...] = TOKENS
    active: tuple[int, ...] = ACTIVE
    seconds: float = 0.03
    minutes: float | None = None
    small: bool = False


def profile(
    out: Path, plan: Plan | None = None, *, device: str = "cuda", say: Say = lambda line: None
) -> dict[str, Any]:
    """Measure a device and write `rows.jsonl` (as it goes), `profile.json` and `kernel-tables.json` to `out`.

    Rows that `rows.jsonl` holds of the same device and versions are not measured again.

    Raises
    ------
    InputError
        If there is no such device, Triton interprets, or `out` holds a profile of another device or versions.
    """
    plan = plan or Plan()
    begin = time.monotonic()
    found = find_device(device)
    for name in plan.models:
        shape_of(name)  # a misspelt one is told before anything is measured
    out.mkdir(parents=True, exist_ok=True)
    journal = _Journal(out / "rows.jsonl", provenance(found))
    clock = Clock(found, plan.seconds)

    def spent() -> bool:
        return plan.minutes is not None and time.monotonic() - begin > 60 * plan.minutes

    if "ceilings" not in journal.facts:
        say("ceilings: copy and matrix product")
        journal.add("ceilings", ceilings(found, clock, small=plan.small))
    complete = _measure_experts(found, plan, journal, clock, spent, say)
    complete = _measure_others(found, plan, journal, clock, spent, say) and complete
    result = {
        "schema": SCHEMA, "kind": "moesim-profile", "device": found.name, "gpu": found.gpu,
        "processors": found.processors, "cache_bytes": found.cache_bytes, "complete": complete,
        "provenance": journal.provenance, "ceilings": journal.facts["ceilings"], "experts": journal.of("experts"),
        "permute": journal.of("permute"), "attention": journal.of("attention"), "all_to_all": journal.of("all_to_all"),
    }  # fmt: skip
    tables = cost_tables(result)
    result["summary"] = summary(result)
    write_text(out / "profile.json", json.dumps(result, indent=1) + "\n")
    if tables is not None:
        write_text(out / "kernel-tables.json", json.dumps(tables, indent=1) + "\n")
    return result


def _measure_experts(
    found: Device, plan: Plan, journal: _Journal, clock: Clock, spent: Callable[[], bool], say: Say
) -> bool:
    kernels = kernels_of(found)
    specs = {(s.hidden, s.intermediate): s for s in map(shape_of, plan.models)}
    known = {_key(row) for row in journal.of("experts")}
    # all shapes coarsely before any finely: a budget that ends the run then leaves few points of each, not many of one
    coarse = [(m, plan.active[: COARSE[1]]) for m in plan.tokens[: COARSE[0]]]
    for m, active in (*coarse, *((m, plan.active) for m in plan.tokens)):
        for spec in specs.values():
            for case in cases(spec, kernels, (m,), active):
                if _key(asdict(case)) in known:
                    continue
                if spent():
                    return False
                known.add(_key(asdict(case)))
                say(f"{case.kernel} {case.dtype}: {case.hidden} x {case.intermediate}, {m} x {case.active_experts}")
                journal.add("experts", _row(case, found, clock))
    return True


def _row(case: Case, found: Device, clock: Clock) -> dict[str, Any]:
    import torch

    try:
        measured = measure(case, found, clock)
    except torch.OutOfMemoryError:
        # a fact of the device, not a failure of the run
        measured = {"seconds": None, "products_s": None, "note": "out of memory"}
    if found.gpu:
        torch.cuda.empty_cache()
    rates = {} if measured["products_s"] is None else {
        "flops_per_s": case.flops / measured["products_s"],
        "weight_bytes_per_s": case.weight_bytes / measured["products_s"],
    }  # fmt: skip
    return asdict(case) | measured | rates


def _measure_others(
    found: Device, plan: Plan, journal: _Journal, clock: Clock, spent: Callable[[], bool], say: Say
) -> bool:
    specs = [shape_of(name) for name in plan.models]
    counts = tuple(m for m in sorted(plan.tokens) if m <= (64 if plan.small else 4096))
    if not journal.of("permute") and not spent():
        say("permute")
        for spec in {s.hidden: s for s in specs}.values():
            for row in others.permutes(found, clock, spec.hidden, counts, spec.top_k):
                journal.add("permute", row)
    if not journal.of("attention") and not spent():
        say("attention")
        contexts = (128,) if plan.small else (512, 2048, 8192)
        for spec in specs:
            for row in others.attentions(found, clock, spec, counts[-3:], contexts):
                journal.add("attention", row)
    if found.gpu and not journal.of("all_to_all") and not spent():
        for row in others.all_to_all(found):
            journal.add("all_to_all", row)
    return not spent()


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    names = ("kernel", "dtype", "hidden", "intermediate", "tokens_per_expert", "active_experts")
    return tuple(row[name] for name in names)


class _Journal:
    """Rows on disk, one a line, kept across kills; the first line says where they were measured."""

    def __init__(self, path: Path, provenance: dict[str, str]) -> None:
        self.path, self.provenance = path, provenance
        self.facts: dict[str, Any] = {}
        self._rows: dict[str, list[dict[str, Any]]] = {}
        lines = path.read_text("utf-8").splitlines(keepends=True) if path.exists() else []
        # a kill can leave half a line; it is measured again
        whole = [line for line in lines if line.endswith("\n")]
        if whole:
            held = json.loads(whole[0])["provenance"]
            same = ("device", "driver", "torch", "triton", "moesim")
            changed = [name for name in same if held.get(name) != provenance.get(name)]
            if changed:
                raise InputError(
                    f"{path}: measured with another {', '.join(changed)} ({held.get(changed[0])}, now "
                    f"{provenance.get(changed[0])}); choose another folder"
                )
            self.provenance = held
            for line in whole[1:]:
                self._keep(**json.loads(line))
        else:
            whole = [json.dumps({"provenance": provenance}) + "\n"]
        write_text(path, "".join(whole))

    def add(self, kind: str, row: dict[str, Any]) -> None:
        """Write one row down."""
        self._keep(kind, row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "row": row}) + "\n")

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Return the rows of one kind."""
        return self._rows.get(kind, [])

    def _keep(self, kind: str, row: dict[str, Any]) -> None:
        if kind == "ceilings":
            self.facts[kind] = row
        else:
            self._rows.setdefault(kind, []).append(row)
