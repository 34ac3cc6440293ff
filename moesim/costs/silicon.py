"""Expert compute from NVIDIA's measured tables: the ``aiconfigurator-core`` wheel, extra ``silicon``.

SGLang's DeepGEMM layer, times of one rank under uniform routing by tokens and experts a rank holds: masked grouped
GEMM (generation) and contiguous (context, eager launches included). Tables are read where they are installed; nothing
of them is part of moesim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from moesim.base.arrays import Array, digest
from moesim.base.errors import InputError
from moesim.costs.constants import family
from moesim.costs.roofline import uses_fp8
from moesim.spec import ModelSpec

if TYPE_CHECKING:
    from moesim.cluster import Cluster

_SYSTEMS: Final = {
    "H100": "h100_sxm", "H200": "h200_sxm", "B200": "b200_sxm", "B300": "b300_sxm", "GB200": "gb200", "GB300": "gb300",
}  # fmt: skip
_VERSION: Final = "0.5.10"
_COLUMNS: Final = ("distribution", "hidden_size", "inter_size", "num_experts", "moe_ep_size", "num_tokens", "topk")


@dataclass(frozen=True, eq=False)
class Silicon:
    """Curves of time over tokens per expert, one for each number of experts of a rank that was measured.

    Attributes
    ----------
    active
        Experts of a rank, ascending [A].
    tokens, log_seconds
        Tokens per expert and logarithm of the seconds of each curve.
    """

    active: Array
    tokens: tuple[Array, ...]
    log_seconds: tuple[Array, ...]
    kind: str
    sources: Mapping[str, str]
    notes: tuple[str, ...]
    digest: str

    def __call__(self, slot_tokens: Array, cluster: Cluster, spec: ModelSpec) -> Array:
        """Return the seconds of the routed experts [..., R] from tokens per slot [..., R, C].

        As with a kernel table an active slot takes one part in (active experts) of the time at its own tokens. Below
        the first point of a curve its time is held: weights decide there. Beyond its last, an expert costs what it
        does among the most experts with which so many tokens were measured.

        Raises
        ------
        InputError
            If an expert has more tokens, or a rank more active experts, than any row.
        """
        m = np.asarray(slot_tokens, np.float64)
        busy = m > 0
        count = np.broadcast_to(busy.sum(axis=-1, keepdims=True), m.shape)[busy].astype(np.float64)
        out = np.zeros(m.shape)
        out[busy] = np.exp(self._log(m[busy], count)) / count
        return np.asarray(out.sum(axis=-1) / cluster.speed)

    def _log(self, m: Array, count: Array) -> Array:
        if not m.size:
            return m
        if count.max() > self.active[-1]:
            raise InputError(
                f"silicon: {count.max():g} active experts on a rank, measured up to {self.active[-1]:g}; spread the "
                "experts over more ranks or use the compute model roofline"
            )
        upper = np.searchsorted(self.active, count)
        lower = np.where(self.active[upper] == count, upper, np.maximum(upper - 1, 0))
        curves = np.stack(
            [np.interp(np.log(m), np.log(t), s) for t, s in zip(self.tokens, self.log_seconds, strict=True)]
        )
        most = np.array([t[-1] for t in self.tokens])
        # a curve between two measured ones ends with the shorter of them; beyond, an expert costs what it does among
        # the most experts with which so many tokens were measured
        wanted = np.minimum(most[lower], most[upper])
        beyond = np.flatnonzero(m > wanted * (1 + 1e-9))
        if beyond.size and m[beyond].max() > most.max() * (1 + 1e-9):
            raise InputError(
                f"silicon: {m[beyond].max():g} tokens for an expert, measured up to {most.max():g} ({self.kind}); use "
                "silicon-context or roofline"
            )
        if beyond.size:
            holds = np.where(most[:, None] * (1 + 1e-9) >= m[beyond], np.arange(len(most))[:, None], -1).max(axis=0)
        width = np.log(self.active[upper]) - np.log(self.active[lower])
        part = np.divide(np.log(count) - np.log(self.active[lower]), width, out=np.zeros_like(width), where=width > 0)
        each = np.arange(len(m))
        found = curves[lower, each] * (1 - part) + curves[upper, each] * part
        if beyond.size:
            found[beyond] = curves[holds, beyond] + np.log(count[beyond] / self.active[holds])
        return np.asarray(found)


def masked(spec: ModelSpec, cluster: Cluster, path: str | None = None) -> Silicon:
    """Build the model of masked grouped GEMMs, as decode runs them."""
    return _read(spec, cluster, "generation")


def contiguous(spec: ModelSpec, cluster: Cluster, path: str | None = None) -> Silicon:
    """Build the model of contiguous grouped GEMMs, as prefill runs them."""
    return _read(spec, cluster, "context")


def _read(spec: ModelSpec, cluster: Cluster, kind: str) -> Silicon:
    """Read the table of a device and shape.

    Raises
    ------
    InputError
        If the extra is not installed, or the wheel has no table of this device, dtype or shape.
    """
    import pyarrow.parquet as parquet

    try:
        root = Path(str(resources.files("aiconfigurator_core")))
    except ModuleNotFoundError:
        raise InputError(
            "compute model silicon: NVIDIA's measured tables are not installed; run `pip install moesim[silicon]`, or "
            "use the compute model roofline"
        ) from None
    families = sorted({family(device) for device in cluster.device})
    unknown = [name or "an unknown device" for name in families if name not in _SYSTEMS]
    if unknown or len(families) > 1:
        raise InputError(
            f"compute model silicon: measured tables are of one device among {', '.join(_SYSTEMS)}, the cluster has "
            f"{', '.join(unknown or families)}; use the compute model roofline"
        )
    if not uses_fp8(spec):
        raise InputError(f"compute model silicon: tables are of block-scaled fp8, {spec.name} is not; use roofline")
    name = f"data/{_SYSTEMS[families[0]]}/moe/sglang/{_VERSION}/wideep_{kind}_moe_perf.parquet"
    file = root / "systems" / name
    if not file.is_file():
        raise InputError(f"{file}: not in this version of aiconfigurator-core; install 0.12")
    rows = parquet.read_table(file, columns=[*_COLUMNS, "latency"]).to_pylist()
    rows = [row for row in rows if row["distribution"] == "uniform"]
    shapes = sorted({(row["hidden_size"], row["inter_size"]) for row in rows})
    if (spec.hidden, spec.intermediate) not in shapes:
        raise InputError(
            f"compute model silicon: measured shapes are {', '.join(f'{h} x {i}' for h, i in shapes)}, {spec.name} has "
            f"{spec.hidden} x {spec.intermediate}; use the compute model roofline"
        )
    curves: dict[int, dict[float, float]] = {}
    for row in rows:
        each = row["num_tokens"] * row["topk"] / row["num_experts"]
        # fewer tokens than experts leave experts idle: another number of active ones
        if (row["hidden_size"], row["inter_size"]) == (spec.hidden, spec.intermediate) and each >= 1:
            curves.setdefault(row["num_experts"] // row["moe_ep_size"], {})[each] = row["latency"] * 1e-3
    active = sorted(curves)
    tokens = tuple(np.array(sorted(curves[a])) for a in active)
    seconds = tuple(np.log([curves[a][m] for m in sorted(curves[a])]) for a in active)
    source = f"measured: aiconfigurator-core wideep_{kind}_moe {_VERSION} (SGLang, DeepGEMM), {_SYSTEMS[families[0]]}"
    note = (
        f"expert compute measured by NVIDIA on {families[0]} ({kind}, uniform routing, {active[0]} to {active[-1]} "
        "experts a rank); below a curve's first point its time is held, beyond its last that of fewer experts is taken"
    )
    return Silicon(
        np.array(active, np.float64), tokens, seconds, kind, {"compute: silicon table": source}, (note,),
        digest(name, *tokens, *seconds),
    )  # fmt: skip
