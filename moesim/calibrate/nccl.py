"""Output of nccl-tests: ``alltoall_perf``, ``all_gather_perf`` and ``reduce_scatter_perf``."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from moesim.base.errors import FormatError
from moesim.calibrate.observe import Observation, text_of, timed
from moesim.costs.constants import family
from moesim.costs.types import Direction
from moesim.spec import BF16
from moesim.validate.loads import Counts, mlp_spec

if TYPE_CHECKING:
    from moesim.cluster import Cluster

_RANK: Final = re.compile(r"^#?\s*Rank\s+(\d+).*?\bon\s+(\S+)\s+device([^\n]*)", re.MULTILINE)
# size (B), count, type, redop, root, time (us) ...; all_gather and alltoall print "none -1" or leave them out
_ROW: Final = re.compile(
    r"^\s*(\d+)\s+(\d+)\s+(\w+)\s+(?:(\w+)\s+)?(?:(-?\d+)\s+)?(\d+(?:\.\d+)?)\s+(\d+(?:\.\d+)?)\s+(\d+(?:\.\d+)?)\s+\S+",
    re.MULTILINE,
)
_SMALL: Final = 32 << 10
_LARGE: Final = 16 << 20
_OPS: Final[dict[str, tuple[str, Direction]]] = {
    "alltoall": ("rank-dedup", "combine"),
    "all_gather": ("allgather", "dispatch"),
    "reduce_scatter": ("allgather", "combine"),
}


def read_nccl(path: str | Path, cluster: Cluster) -> list[Observation]:
    """Return the rows of one run, out of place.

    Small all-to-alls tell the floor, large ones the bandwidth of NVLink or, across nodes, of the NICs. Sizes between,
    and the other operations, are only compared.

    Raises
    ------
    FormatError
        If no rank or row is found, nodes hold different numbers of GPUs, or they are of another device.
    """
    text, name = text_of(path), Path(path).name
    ranks = _RANK.findall(text)
    hosts = [host for _, host, _ in ranks]
    if len(hosts) < 2:
        raise FormatError(
            path,
            "",
            "expected the output of nccl-tests with the list of ranks ('#  Rank  0 ... on HOST device')",
        )
    counts = {host: hosts.count(host) for host in hosts}
    if len(set(counts.values())) > 1:
        raise FormatError(path, "ranks", f"expected as many GPUs on every host, found {counts}; measure even groups")
    _check_device(path, {family(rest) for _, _, rest in ranks}, cluster)
    nodes, gpus = len(counts), next(iter(counts.values()))
    op = _operation(text, name, path)
    transport, side = _OPS[op]
    found = []
    for match in _ROW.finditer(text):
        size, measured = float(match[1]), float(match[6]) * 1e-6
        if size and measured:
            decides = _decides(op, size, nodes, cluster)
            predict = _predict(size, nodes, gpus, transport, side, str(path))
            label = f"{op}, {nodes} x {gpus} GPUs, {size:.0f} B"
            found.append(Observation(name, label, decides, measured, predict))
    if not found:
        raise FormatError(path, "", "no row of sizes and times found; give the output of nccl-tests as it prints it")
    return found


def _check_device(path: str | Path, measured: set[str], cluster: Cluster) -> None:
    """Refuse what GPUs of another family measured; names that nobody knows are taken."""
    ours = {family(device) for device in cluster.device}
    if "" not in ours and (others := sorted(measured - ours - {""})):
        raise FormatError(
            path, "ranks", f"expected {' or '.join(sorted(ours))} ({cluster.name}), measured on {', '.join(others)}; "
            "name the topology of the cluster that was measured"
        )  # fmt: skip


def _operation(text: str, name: str, path: str | Path) -> str:
    for op in _OPS:
        if f"{op}_perf" in text or op in name.lower().replace("-", "_"):
            return op
    if "all_reduce" in text or "all_reduce" in name.lower().replace("-", "_"):
        raise FormatError(path, "", "all_reduce tells nothing that a transport uses; run alltoall_perf")
    # their rows differ: only all-to-all prints neither operation nor root worth the name
    raise FormatError(
        path, "", "which operation was run is not said; put alltoall, all_gather or reduce_scatter into the file name"
    )


def _decides(op: str, size: float, nodes: int, cluster: Cluster) -> str:
    if op != "alltoall":
        return ""
    if size <= _SMALL and nodes == 1:
        return "constants.collective_floor"
    if size >= _LARGE:
        return "tier.node.effective" if nodes == 1 else nic_key(cluster)
    return ""


def nic_key(cluster: Cluster) -> str:
    """Return the key of the NICs' effective bandwidth, nothing where a cluster has none."""
    tier = cluster.description.tier
    return "tier.rail.effective" if tier.rail else "tier.leaf.effective" if tier.leaf else ""


def _predict(
    size: float, nodes: int, gpus: int, transport: str, side: Direction, source: str
) -> Callable[[Cluster], float]:
    ranks = nodes * gpus
    spec = mlp_spec(8192, 8192, ranks, 1, BF16, BF16)
    held = spec.combine_token_bytes if side == "combine" else spec.dispatch_token_bytes + 8

    def flow(where: Cluster) -> Counts:
        # every rank holds size / ranks for each rank, itself included
        copies = np.full((1, ranks, ranks), size / ranks / held)
        by_node = np.full((1, ranks, where.nodes), size / nodes / held)
        return Counts(copies[..., :1], copies, copies, by_node, copies, np.full(ranks, size / ranks / held))

    return timed((nodes, gpus), spec, transport, flow, side, source)
