"""What advice says: options that were judged, and one line a question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from moesim.base.units import count, show
from moesim.placement.policies import NEEDS_SUPPORT

LEAST_GAIN: Final = 0.01
"""Part of a step that a change must save to be worth the trouble."""


@dataclass(frozen=True)
class Option:
    """One thing to do, judged on held-out steps.

    Parameters
    ----------
    name, kind
        What it is; ``"placement"``, ``"slots"`` or ``"policy"``.
    solver, policy, slots_per_rank
        What makes the placement, who serves, experts a rank holds in a layer.
    engine
        Who runs the policy today, or "needs engine support".
    step_s, gain, gain_error
        Mean seconds of a step; part of the present step that it saves; standard error of that over steps, None for
        a single step.
    fit_step_s, balance
        Mean seconds on the fit traffic, None for policies; mean over largest load of a rank, step by step.
    moves, move_s, break_even_s
        Experts to receive, seconds of that, seconds of serving until it has paid off (None: never, or a restart).
    pays
        Whether it saves more than `LEAST_GAIN`, more than two standard errors, and its move pays off in the horizon.
    """

    name: str
    kind: str
    solver: str
    policy: str
    slots_per_rank: int
    engine: str
    step_s: float
    gain: float
    gain_error: float | None
    fit_step_s: float | None
    balance: float
    moves: int | None
    move_s: float | None
    break_even_s: float | None
    pays: bool


def advised(options: Sequence[Option]) -> Option | None:
    """Return the re-placement to take: of those that pay and are about as good the one that moves least, or None."""
    paying = [option for option in options if option.kind == "placement" and option.pays]
    top = max((option.gain for option in paying), default=0.0)
    return min((o for o in paying if o.gain > 0.8 * top), key=lambda o: o.move_s or 0.0, default=None)


def answers(
    options: list[Option], policy: str, slots: int, best_gain: Mapping[str, float] | None = None
) -> dict[str, str]:
    """Return one line a question: another placement, EPLB, another number of copies, another policy.

    Parameters
    ----------
    best_gain
        What the best re-placement under the present policy saves on the steps on which other policies were judged, by
        their names, where those are not all.
    """
    placed = [option for option in options if option.kind == "placement"]
    eplb = next(option for option in placed if option.solver == "eplb")
    best = min(placed, key=lambda option: option.step_s)
    pick = advised(placed)
    if pick is not None:
        place = f"re-place ({pick.name}): {_saves(pick)}; {_moving(pick)}"
        if pick is not best:
            place += f"; {best.name} saves {best.gain:.1%}"
    else:
        place = f"stay with the running placement: the best other one ({best.name}) saves {best.gain:.1%}{_why(best)}"
    if eplb.pays:
        by_eplb = f"EPLB pays: {_saves(eplb)}; {_moving(eplb)}"
    else:
        by_eplb = f"EPLB will not pay here: it saves {eplb.gain:.1%}{_why(eplb)}"
    counts = [option for option in options if option.kind == "slots"]
    # against the best placement of as many slots as there are, whoever found it
    better = [o for o in counts if best.step_s - o.step_s > LEAST_GAIN * best.step_s]
    if better:
        least = min(better, key=lambda option: option.step_s)
        word = "more" if least.slots_per_rank > slots else "fewer"
        by_slots = (
            f"{word} copies pay: with {count(least.slots_per_rank, 'slot')} a rank a step takes "
            f"{1 - least.step_s / best.step_s:.1%} less than with {slots} ({best.name})"
        )
    else:
        by_slots = f"keep {count(slots, 'slot')} a rank: " + (
            ", ".join(f"with {o.slots_per_rank} a step takes {o.step_s / best.step_s - 1:+.1%}" for o in counts)
            or "no other number fits"
        )
    others = [option for option in options if option.kind == "policy"]
    replaced = {option.policy: best.gain for option in others} | dict(best_gain or {})

    def beyond(option: Option) -> float:
        return option.gain - max(replaced[option.policy], 0.0)

    winning = [option for option in others if beyond(option) > LEAST_GAIN]
    today = [o for o in winning if o.engine != NEEDS_SUPPORT]
    parts = []
    if today:
        pick = max(today, key=beyond)
        parts.append(f"{pick.policy} ({pick.engine}) {_by_policy(pick, policy, replaced, 'saves')}")
    if winning and (not today or max(winning, key=beyond) is not max(today, key=beyond)):
        pick = max(winning, key=beyond)
        parts.append(f"{pick.policy} {_by_policy(pick, policy, replaced, 'would save')}, but {pick.engine}")
    by_policy = "; ".join(parts) or f"keep policy {policy}: no other saves {LEAST_GAIN:.0%} beyond re-placing"
    return {"placement": place, "eplb": by_eplb, "slots": by_slots, "policy": by_policy}


def _by_policy(option: Option, policy: str, replaced: Mapping[str, float], verb: str) -> str:
    if option.solver == "stay":
        return f"{verb} {option.gain:.1%} with the running placement"
    return f"{verb} {option.gain:.1%} with {option.solver} ({policy}: {replaced[option.policy]:.1%})"


def _saves(option: Option) -> str:
    error = "" if option.gain_error is None else f" (standard error {option.gain_error:.1%})"
    return f"saves {option.gain:.1%} of a step{error}"


def _moving(option: Option) -> str:
    if option.move_s is None or option.break_even_s is None:
        return "no move to pay off"
    return (
        f"moving {count(option.moves or 0, 'expert')} takes {show(option.move_s, 'time')}, paid off after "
        f"{show(option.break_even_s, 'time')}"
    )


def _why(option: Option) -> str:
    if option.gain <= 0:
        return " on held-out traffic"
    if option.gain_error is not None and option.gain <= 2 * option.gain_error:
        return f", within the noise of held-out steps (standard error {option.gain_error:.1%})"
    if option.gain <= LEAST_GAIN:
        return f", less than the {LEAST_GAIN:.0%} that a change should save"
    return ", but its move does not pay off in the horizon"
