"""What was measured: one time, and how the model predicts it on a cluster."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moesim.base.errors import FormatError, InputError
from moesim.base.units import count
from moesim.costs.types import Direction
from moesim.spec import ModelSpec
from moesim.validate.exchange import exchange
from moesim.validate.loads import Counts

if TYPE_CHECKING:
    from moesim.cluster import Cluster

_LARGEST = 512 * 2**20


@dataclass(frozen=True, eq=False)
class Observation:
    """One measured time.

    Attributes
    ----------
    source
        File it was read from.
    label
        What it is, for people.
    decides
        Key of the constant that it can tell, as in a topology file; empty: it is compared, nothing is fitted to it.
    measured_s
        Seconds, above 0.
    predict
        Seconds that the model says on a cluster.

    Raises
    ------
    InputError
        If the time is not above 0, or not finite.
    """

    source: str
    label: str
    decides: str
    measured_s: float
    predict: Callable[[Cluster], float]

    def __post_init__(self) -> None:
        if not 0 < self.measured_s < math.inf:
            raise InputError(
                f"{self.source}: {self.label}: expected a time above 0, found {self.measured_s:g} s; measure again"
            )


def group(cluster: Cluster, nodes: int, gpus: int, source: str | Path) -> Cluster:
    """Return the part of a cluster on which something was measured: the first GPUs of its first nodes.

    Raises
    ------
    FormatError
        If the cluster has fewer.
    """
    ranks = [int(rank) for node in range(min(nodes, cluster.nodes)) for rank in cluster.rank_of_node(node)[:gpus]]
    if len(ranks) < nodes * gpus:
        raise FormatError(
            source,
            "",
            f"measured on {count(nodes, 'node')} of {count(gpus, 'GPU')}, {cluster.name} has "
            f"{count(cluster.nodes, 'node')} and {count(cluster.ranks, 'GPU')} in all; name the topology of the "
            "cluster that was measured",
        )
    return cluster.restrict(ranks)


def timed(
    shape: tuple[int, int],
    spec: ModelSpec,
    transport: str,
    flow: Callable[[Cluster], Counts],
    direction: Direction,
    source: str,
    sms: float = 0.0,
) -> Callable[[Cluster], float]:
    """Return how the model predicts a dispatch or combine on ``shape`` (nodes, GPUs of each)."""

    def predict(cluster: Cluster) -> float:
        where = group(cluster, *shape, source)
        return exchange(where, spec, transport, flow(where), direction, sms)[0]

    return predict


def text_of(path: str | Path) -> str:
    """Return the text of a log, unpacked where its name ends in ``.gz``.

    Raises
    ------
    InputError
        If it cannot be read, or is larger than half a gigabyte.
    """
    where = Path(path)
    try:
        with gzip.open(where) if where.suffix == ".gz" else where.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{where}: cannot be unpacked: {error}; name a whole gzip file") from None
    except OSError as error:
        raise InputError(f"{where}: cannot be read: {error.strerror}; name an existing file") from None
    if len(content) > _LARGEST:
        raise InputError(f"{where}: larger than {_LARGEST >> 20} MiB; cut it to the steps that matter")
    return content.decode("utf-8", errors="replace").replace("\r\n", "\n").replace("\r", "\n")
