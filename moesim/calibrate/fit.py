"""Fitting: one constant at a time, on the observations that tell it, by the model that simulation uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from scipy.optimize import minimize_scalar

from moesim.base.errors import InputError
from moesim.base.units import count, parse
from moesim.calibrate.observe import Observation
from moesim.costs import constants as k
from moesim.costs.roofline import gemm_share, hbm_share
from moesim.costs.transports.channels import collective_floor
from moesim.costs.transports.parts import net_floor

if TYPE_CHECKING:
    from moesim.cluster import Cluster

_SPAN: Final = 8.0  # how far from its first value a constant is looked for, as a factor
_ROUNDS: Final = 2
_AT_EDGE: Final = 1.01
_ABSURD: Final = 0.5
"""Relative error beyond which a constant explains nothing and is left as it was: of the median observation, or the
mean of all where the constant stands at its limit."""
_SLOWER: Final = 1.1
_TELLS: Final = 0.01
"""Part by which some time must grow with a constant that much slower, for its observations to tell the constant."""


@dataclass(frozen=True)
class Knob:
    """A constant that can be fitted: its key and its kind (``time``, ``bandwidth`` or ``share``)."""

    key: str
    kind: str

    def text(self, value: float) -> str | float:
        """Return a value as a topology file has it."""
        if self.kind == "time":
            return f"{value * 1e6:.4g} us"
        if self.kind == "bandwidth":
            return f"{value / 1e9:.5g} GB/s"
        return round(value, 4)


# bandwidths first: floors are what remains beside them
KNOBS: Final = (
    Knob("tier.node.effective", "bandwidth"),
    Knob("tier.rail.effective", "bandwidth"),
    Knob("tier.leaf.effective", "bandwidth"),
    Knob("constants.direct_combine_bandwidth", "bandwidth"),
    Knob("constants.hierarchical_copy_bandwidth", "bandwidth"),
    Knob("constants.collective_floor", "time"),
    Knob("constants.direct_dispatch_floor", "time"),
    Knob("constants.direct_combine_floor", "time"),
    Knob("constants.hierarchical_floor", "time"),
    Knob("constants.gemm_share", "share"),
    Knob("constants.hbm_share", "share"),
    Knob("constants.launch", "time"),
    Knob("constants.attention_share", "share"),
)


@dataclass(frozen=True)
class Fitted:
    """A constant and how well it fits.

    ``error_before`` and ``error`` are mean relative errors on its observations, ``limit`` says which end of what is
    possible it stands at, if it does.
    """

    key: str
    value: str | float
    before: str | float
    observations: int
    sources: tuple[str, ...]
    error_before: float
    error: float
    limit: str = ""


@dataclass(frozen=True)
class Fit:
    """What calibration found.

    Attributes
    ----------
    cluster
        The topology with the fitted constants.
    fitted
        The constants.
    not_fitted
        Constants that no observation tells, or that were tried in vain, with the reason.
    residuals
        Per source and what it measured: observations, mean relative error before and after.
    """

    cluster: Cluster
    fitted: tuple[Fitted, ...]
    not_fitted: tuple[tuple[str, str], ...]
    residuals: tuple[tuple[str, int, float, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "fitted": [{**vars(item), "sources": list(item.sources)} for item in self.fitted],
            "not_fitted": [{"key": key, "reason": reason} for key, reason in self.not_fitted],
            "residuals": [
                {"source": source, "observations": count, "error_before": before, "error": after}
                for source, count, before, after in self.residuals
            ],
        }


def calibrate(
    cluster: Cluster, observations: Sequence[Observation], progress: Callable[[str], None] | None = None
) -> Fit:
    """Fit the constants of a topology that the observations tell; leave the others.

    Every constant minimises the mean of |log(predicted / measured)| over its own observations; two rounds, since
    floors and bandwidths depend on each other a little.

    Raises
    ------
    InputError
        If there is no observation, or none fits the cluster.
    """
    if not observations:
        raise InputError("calibrate: nothing was measured; give the output of nccl-tests or DeepEP, or a kernel table")
    groups = {knob: [o for o in observations if o.decides == knob.key] for knob in KNOBS}
    now = cluster
    tried: dict[Knob, tuple[float, float]] = {}
    for _ in range(_ROUNDS):
        for knob, mine in groups.items():
            if mine and _value(now, knob) is not None:
                if progress:
                    progress(f"fitting {knob.key} to {count(len(mine), 'observation')}")
                now, tried[knob] = _fit_one(now, knob, mine)
    vain = {
        knob: why
        for knob, ends in tried.items()
        if (why := _absurd(now, knob, ends, groups[knob]) or _untold(now, knob, groups[knob]))
    }
    if vain:
        kept = (knob for knob in tried if knob not in vain)
        now = cluster.edit({knob.key: knob.text(float(_value(now, knob) or np.nan)) for knob in kept})
    fitted, not_fitted = [], []
    for knob, mine in groups.items():
        if knob not in tried or knob in vain:
            not_fitted.append((knob.key, vain.get(knob) or _reason(cluster, knob, mine)))
            continue
        before, after = _value(cluster, knob), _value(now, knob)
        value = float(after if after is not None else np.nan)
        fitted.append(
            Fitted(
                knob.key, knob.text(value), knob.text(float(before or np.nan)), len(mine),
                tuple(sorted({o.source for o in mine})), error(cluster, mine), error(now, mine),
                _limit(value, tried[knob]),
            )
        )  # fmt: skip
    return Fit(now, tuple(fitted), tuple(not_fitted), _residuals(cluster, now, observations))


def error(cluster: Cluster, observations: Sequence[Observation]) -> float:
    """Return the mean of |predicted / measured - 1|."""
    return float(np.mean(_errors(cluster, observations)))


def _errors(cluster: Cluster, observations: Sequence[Observation]) -> list[float]:
    return [abs(o.predict(cluster) / o.measured_s - 1) for o in observations]


def _limit(value: float, ends: tuple[float, float]) -> str:
    low, high = ends
    return "lower" if value <= low * _AT_EDGE else "upper" if value >= high / _AT_EDGE else ""


def _absurd(fitted: Cluster, knob: Knob, ends: tuple[float, float], mine: Sequence[Observation]) -> str:
    """Return why a fitted constant is not taken, or nothing."""
    value = float(_value(fitted, knob) or np.nan)
    limit, errors = _limit(value, ends), _errors(fitted, mine)
    off = float(np.mean(errors))
    if not (limit and off > _ABSURD) and np.median(errors) <= _ABSURD:
        return ""
    where = f"its {limit} limit" if limit else "its best"
    return (
        f"off by {off:.3g} times what was measured in {count(len(mine), 'observation')} even at {where} of "
        f"{knob.text(value)}; check their units, and whether they are of this cluster"
    )


def _untold(fitted: Cluster, knob: Knob, mine: Sequence[Observation]) -> str:
    """Return why observations do not tell a constant, or nothing: something else may take all of their time."""
    value = float(_value(fitted, knob) or np.nan)
    slower = _set(fitted, knob, value * _SLOWER if knob.kind == "time" else value / _SLOWER)
    if any(o.predict(slower) > (1 + _TELLS) * o.predict(fitted) for o in mine):
        return ""
    return (
        f"{_SLOWER - 1:.0%} slower than {knob.text(value)} it would change none of its "
        f"{count(len(mine), 'observation')} by {_TELLS:.0%}: something else decides them"
    )


def _fit_one(cluster: Cluster, knob: Knob, mine: Sequence[Observation]) -> tuple[Cluster, tuple[float, float]]:
    start = float(_value(cluster, knob) or 1.0)
    low, high = start / _SPAN, start * _SPAN
    if knob.kind == "share":
        high = min(high, 1.0)
    if knob.key.startswith("tier."):
        high = min(high, float(_tier(cluster, knob)["bandwidth"]))

    def miss(logarithm: float) -> float:
        trial = _set(cluster, knob, float(np.exp(logarithm)))
        return float(np.mean([abs(np.log(o.predict(trial) / o.measured_s)) for o in mine]))

    found = minimize_scalar(miss, bounds=(np.log(low), np.log(high)), method="bounded", options={"xatol": 2e-3})
    best, at = float(found.x), float(found.fun)
    # a minimum that is no better than what was there is none
    if miss(np.log(start)) <= at:
        best = float(np.log(start))
    return _set(cluster, knob, float(np.exp(best))), (low, high)


def _set(cluster: Cluster, knob: Knob, value: float) -> Cluster:
    return cluster.edit({knob.key: knob.text(value)})


def _tier(cluster: Cluster, knob: Knob) -> dict[str, float]:
    """Return the nominal and effective bandwidth of the knob's tier, bytes/s; empty where there is no such tier."""
    table = getattr(cluster.description.tier, knob.key.split(".")[1])
    if table is None:
        return {}
    nominal = parse(table.bandwidth, "bandwidth", knob.key)
    reached = nominal if table.effective is None else parse(table.effective, "bandwidth", knob.key)
    return {"bandwidth": nominal, "effective": reached}


def _value(cluster: Cluster, knob: Knob) -> float | None:
    """Return the value of a knob now, None where the cluster has no such part."""
    if knob.key.startswith("tier."):
        return _tier(cluster, knob).get("effective")
    held = cluster.description.constants
    text = None if held is None else getattr(held, knob.key.split(".")[1])
    if text is None:
        return _published(cluster, knob)
    return float(text) if knob.kind == "share" else parse(text, knob.kind, knob.key)


def _published(cluster: Cluster, knob: Knob) -> float:
    """Return what the model takes on these devices where the topology sets nothing."""
    if knob.key == "constants.direct_combine_bandwidth" and not any(map(k.is_hopper, cluster.device)):
        # only Hopper's combine has a rate of its own
        return _value(cluster, Knob("tier.node.effective", "bandwidth")) or k.LL_COMBINE_BANDWIDTH.value
    factor = k.floor_factor(cluster.device)
    hopper = {
        "direct_dispatch_floor": k.LL_DISPATCH_FLOOR_S,
        "direct_combine_floor": k.LL_COMBINE_FLOOR_S,
        "hierarchical_floor": k.NORMAL_DISPATCH_FLOOR_S,
    }
    floors = {name: net_floor(floor) * factor + k.FLOOR_PATH_S.value for name, floor in hopper.items()}
    return {
        "direct_combine_bandwidth": k.LL_COMBINE_BANDWIDTH.value,
        "hierarchical_copy_bandwidth": k.SM_COPY_BANDWIDTH.value,
        "collective_floor": collective_floor(cluster, 8).value,
        "gemm_share": gemm_share(cluster).value,
        "hbm_share": hbm_share(cluster).value,
        "launch": k.LAUNCH_S.value,
        "attention_share": k.ATTENTION_SHARE.value,
        **floors,
    }[knob.key.removeprefix("constants.")]


def _reason(cluster: Cluster, knob: Knob, mine: Sequence[Observation]) -> str:
    if knob.key.startswith("tier.") and not _tier(cluster, knob):
        return "the topology has no such tier"
    return "no observation tells it" if not mine else "not tried"


def _residuals(
    before: Cluster, after: Cluster, observations: Sequence[Observation]
) -> tuple[tuple[str, int, float, float], ...]:
    rows = []
    for source, decides in dict.fromkeys((o.source, o.decides) for o in observations):
        mine = [o for o in observations if (o.source, o.decides) == (source, decides)]
        what = f"{source}: {decides or 'compared only'}"
        rows.append((what, len(mine), error(before, mine), error(after, mine)))
    return tuple(rows)
