"""Output of DeepEP's own tests: ``test_low_latency.py``, ``test_intranode.py`` and ``test_internode.py``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from moesim.base.errors import FormatError
from moesim.calibrate.nccl import nic_key
from moesim.calibrate.observe import Observation, text_of, timed
from moesim.costs.types import Direction
from moesim.spec import BF16, FP8_BLOCK
from moesim.validate.loads import mlp_spec, uniform

if TYPE_CHECKING:
    from moesim.cluster import Cluster

_LOW: Final = re.compile(
    r"\[rank (\d+)\] Dispatch bandwidth: [\d.]+ GB/s, avg_t=([\d.]+) us \| Combine bandwidth: [\d.]+ GB/s, "
    r"avg_t=([\d.]+) us"
)
_BEST: Final = re.compile(r"\[tuning\] Best (dispatch \((?:FP8|BF16)\)|combine): SMs (\d+),([^\n]*)")
# "t: 453.49 us" (one node), "2242 + 754.12 us" or "transmit: 27.54 us" (several)
_TIME: Final = re.compile(r"(?:t: |\+ |transmit: )([\d.]+) us")
_CONFIG: Final = re.compile(r"num_(tokens|topk_groups|topk|experts)=(\d+)|(hidden)=(\d+)")
_FEW: Final = 32  # tokens up to which floors decide


@dataclass(frozen=True)
class Setting:
    """What a run does not print of itself; defaults are those of DeepEP's scripts."""

    nodes: int = 1
    gpus: int = 8
    tokens: int | None = None
    hidden: int = 7168
    top_k: int = 8
    experts: int | None = None
    groups: int | None = None


def read_deepep(path: str | Path, cluster: Cluster, setting: Setting | None = None) -> list[Observation]:
    """Return the times of a run: low latency as the mean over ranks, normal kernels by their best tuning.

    On one node they tell floors and the rates of copy engines, across nodes the bandwidth of the NICs.

    Raises
    ------
    FormatError
        If the file holds neither, or prints no times (DeepEP before 2025-06 printed GB/s alone).
    """
    text, name = text_of(path), Path(path).name
    asked = setting or Setting()
    printed = {a or c: int(b or d) for a, b, c, d in _CONFIG.findall(text)}
    low, best = _LOW.findall(text), _BEST.findall(text)
    if not low and not best:
        raise FormatError(
            path,
            "",
            "expected the output of DeepEP's tests ('[rank 0] Dispatch bandwidth: ...', '[tuning] Best')",
        )
    nodes, gpus = asked.nodes, asked.gpus
    hidden, top_k = printed.get("hidden", asked.hidden), printed.get("topk", asked.top_k)
    found = []
    if low:
        tokens = asked.tokens or printed.get("tokens", 128)
        experts = _whole(asked.experts or printed.get("experts", 288), nodes * gpus)
        spec = mlp_spec(hidden, 2048, experts, top_k, 1.0, FP8_BLOCK)
        flow = partial(uniform, experts=experts, top_k=top_k, tokens=tokens)
        for side, column in (("dispatch", 1), ("combine", 2)):
            direction: Direction = "dispatch" if side == "dispatch" else "combine"
            measured = float(np.mean([float(row[column]) for row in low])) * 1e-6
            predict = timed((nodes, gpus), spec, "direct", flow, direction, str(path))
            label = f"low latency {side}, {nodes} x {gpus} GPUs, {tokens} tokens"
            found.append(Observation(name, label, _low_key(side, tokens, nodes, cluster), measured, predict))
    for what, sms, rest in best:
        time = _TIME.search(rest)
        if time is None:
            continue
        tokens = asked.tokens or printed.get("tokens", 4096)
        experts = _whole(asked.experts or printed.get("experts", 256), nodes * gpus)
        groups = asked.groups or printed.get("topk_groups", 0) if nodes > 1 else 0
        direction = "combine" if what == "combine" else "dispatch"
        spec = mlp_spec(hidden, 2048, experts, top_k, 1.0, BF16 if "BF16" in what else FP8_BLOCK)
        flow = partial(uniform, experts=experts, top_k=top_k, tokens=tokens, groups=groups)
        predict = timed((nodes, gpus), spec, "hierarchical", flow, direction, str(path), float(sms))
        label = f"normal {what}, {nodes} x {gpus} GPUs, {tokens} tokens, {sms} SMs"
        decides = "constants.hierarchical_copy_bandwidth" if nodes == 1 else nic_key(cluster)
        if tokens <= _FEW:
            decides = "constants.hierarchical_floor" if nodes == 1 else ""
        found.append(Observation(name, label, decides, float(time[1]) * 1e-6, predict))
    if not found:
        raise FormatError(path, "", "the '[tuning] Best' lines print no time in us; run DeepEP of 2025-06 or later")
    return found


def _low_key(side: str, tokens: int, nodes: int, cluster: Cluster) -> str:
    if nodes > 1:
        # of few tokens the floor is most, and a floor that is off would be taken for a slow NIC
        return nic_key(cluster) if tokens > _FEW else ""
    if side == "combine" and tokens > _FEW:
        return "constants.direct_combine_bandwidth"
    return f"constants.direct_{side}_floor"


def _whole(experts: int, ranks: int) -> int:
    return -(-experts // ranks) * ranks
