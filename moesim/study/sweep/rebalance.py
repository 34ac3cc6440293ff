"""Kind "rebalance": replay drifting traffic with one rule for planning anew; one row says whether it was worth it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import Field

from moesim.base.arrays import digest
from moesim.base.errors import UnknownName
from moesim.placement import Placement
from moesim.study.drift import drifting
from moesim.study.rebalance import Rebalancing, Replay, World, cut_note, replay
from moesim.study.sweep.kinds import Row
from moesim.study.sweep.settings import Common, at_least, check_fit, parse
from moesim.study.windows import costs_of, part_of, steps_of
from moesim.trace import Trace

COLUMNS: Final = ("saved_share", "total_s", "stopped_s", "plans", "moved_bytes", "interval_s", "break_even_interval_s")
RESULTS: Final = (
    *COLUMNS, "replayed_steps", "step_s", "never_step_s", "never_s", "moves", "imbalance", "never_imbalance", "notes",
)  # fmt: skip
_STARTS: Final = ("mixed", "first")
_WORLDS_KEPT: Final = 2


class RebalanceSettings(Common):
    """Settings of a replay: the common ones, the drift, the rule, and what a move costs."""

    solver: str = "eplb"
    tokens_per_rank: int | None = 64
    fit: float = 0.25
    domains: list[str] = Field(default_factory=list)
    block_steps: int = 8
    cycles: int = 2
    start: str = "mixed"
    when: str = "interval"
    interval: int = 4
    threshold: float = 0.1
    window: int = 2
    migrate: str = "stop"
    stall_s: float = 0.0
    share: float = 0.5
    gain: float = 0.0
    repeat: int = 1000

    def check(self) -> None:
        """Check names and numbers."""
        super().check()
        check_fit(self.fit)
        at_least(1, block_steps=self.block_steps, cycles=self.cycles)
        if self.start not in _STARTS:
            raise UnknownName("start", self.start, _STARTS)
        self.rule()

    def rule(self) -> Rebalancing:
        """Return when to plan anew and what a move costs."""
        return Rebalancing(
            when=self.when, interval=self.interval, threshold=self.threshold, window=self.window, migrate=self.migrate,
            stall_s=self.stall_s, share=self.share, gain=self.gain, repeat=self.repeat,
        )  # fmt: skip


def needs(settings: Mapping[str, Any], folder: Path) -> Mapping[str, Callable[[], Any]]:
    """Check settings and name the trace and the cluster."""
    return parse(RebalanceSettings, settings).needs(folder)


def run(settings: Mapping[str, Any], folder: Path, shared: Mapping[str, Any]) -> Row:
    """Return what one rule is worth against never planning anew."""
    chosen = parse(RebalanceSettings, settings)
    world, start, notes = world_of(chosen, shared)
    rule = chosen.rule()
    never = replay(world, start, Rebalancing(when="never", repeat=rule.repeat))
    found = replay(world, start, rule)
    # the first plan is not one of the rule's
    notes = (*notes, *cut_note(found.cut + (start.digest in world.cut), found.plans + 1, chosen.deadline_s))
    return {**row_of(found, never, rule), "notes": "\n".join(notes)}


def world_of(chosen: RebalanceSettings, shared: Mapping[str, Any]) -> tuple[World, Placement, tuple[str, ...]]:
    """Return what a replay runs on, the placement at its beginning, and notes."""
    trace: Trace = shared[chosen.trace_key]
    group = chosen.group(shared)
    tokens = chosen.tokens_per_rank or 64
    fit = part_of(trace, "fit", fit=chosen.fit, seed=chosen.seed)
    held = part_of(trace, "held-out", fit=chosen.fit, seed=chosen.seed)
    batches, labels = drifting(
        held, group.ranks, domains=chosen.domains, block_steps=chosen.block_steps, cycles=chosen.cycles,
        tokens_per_rank=tokens, phase=chosen.phase, max_steps=chosen.steps, seed=chosen.seed,
    )  # fmt: skip
    costs = costs_of(
        batches, group, dims=chosen.dimensions(trace), transport=chosen.transport, network=chosen.network,
        compute=chosen.compute,
    )  # fmt: skip
    slots = chosen.slots_of(trace, group)
    key = digest(
        batches.digest, group.digest, costs.digest, slots, chosen.solver, chosen.solver_options, chosen.policy,
        chosen.seed, chosen.start, chosen.window, chosen.steps, chosen.deadline_s,
    )  # fmt: skip
    if key not in _WORLDS:
        while len(_WORLDS) >= _WORLDS_KEPT:
            _WORLDS.pop(next(iter(_WORLDS)))
        world = World(
            batches, labels, group, costs, chosen.policy, slots, chosen.solver, chosen.solver_options,
            chosen.deadline_s, chosen.seed,
        )  # fmt: skip
        if chosen.start == "mixed":
            mixed = steps_of(
                fit, group, tokens_per_rank=tokens, phase=chosen.phase, max_steps=chosen.steps, seed=chosen.seed
            )
            start = world.fitted(mixed)
        else:
            start = world.plan(0, min(chosen.window, len(batches)), None)
        _WORLDS[key] = world, start
    world, start = _WORLDS[key]
    said = list(costs.assumptions)
    if costs.partial_note:
        said.append(
            f"seconds, intervals, moves and bytes are of {costs.spec.layers} of {costs.spec.moe_layers} MoE layers: of "
            f"the whole model all are {costs.spec.stands_for:.3g} times as much, to the same shares; so are stalls"
        )
    return world, start, (*batches.notes, *said)


def row_of(found: Replay, never: Replay, rule: Rebalancing) -> Row:
    """Return what one rule is worth, as a row."""
    stopped_s = float(found.stall_s.sum())
    # what a plan costs, stopped or beside serving, does not grow with the time between plans; what it saves does
    paid_s = stopped_s + float(found.beside_s.sum())
    saved_s = never.total_s - found.total_s + paid_s
    step_s = float(found.step_s.mean())
    even = rule.interval * rule.repeat * step_s * max(paid_s, 0.0) / saved_s if saved_s > 0 else None
    return {
        "replayed_steps": len(found.step_s),
        "step_s": step_s,
        "never_step_s": float(never.step_s.mean()),
        "total_s": found.total_s,
        "never_s": never.total_s,
        "saved_share": 1 - found.total_s / never.total_s,
        "stopped_s": stopped_s,
        "plans": found.plans,
        "moves": found.moves,
        "moved_bytes": found.moved_bytes,
        "imbalance": float(found.imbalance.mean()),
        "never_imbalance": float(never.imbalance.mean()),
        "interval_s": rule.interval * rule.repeat * step_s if rule.when == "interval" else None,
        "break_even_interval_s": even if rule.when == "interval" else None,
    }


_WORLDS: Final[dict[str, tuple[World, Placement]]] = {}
