"""The constants that a foreign file does not tell: taken from a preset, and said so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moesim.base.errors import InputError
from moesim.base.units import parse

# NVLinks of a GPU, from the datasheets; nominal bandwidth over this is that of one link
NVLINKS = {
    "A100-SXM": 12, "H800-SXM": 8, "H100-SXM": 18, "H200-SXM": 18, "H20-SXM": 18,
    "B200-SXM": 18, "B300-SXM": 18, "GB200": 18, "GB300": 18,
}  # fmt: skip


class Like:
    """A preset as a source of constants.

    Parameters
    ----------
    name
        A preset, or a topology file, with a ``[tier.node]`` and a ``[tier.rail]`` or ``[tier.leaf]``.

    Raises
    ------
    InputError
        If it has no such tables.
    """

    def __init__(self, name: str) -> None:
        from moesim.cluster.formats.toml import load, locate

        self.name = name
        self.tables = load(locate(name, Path()))
        tier = self.tables.get("tier", {})
        if "gpu" not in self.tables or "node" not in tier or not ("rail" in tier or "leaf" in tier):
            raise InputError(
                f"like: {name} has no [gpu], [tier.node] and [tier.rail]; name a preset such as h100-4x8-rail"
            )

    @property
    def gpu(self) -> dict[str, Any]:
        """The ``[gpu]`` table."""
        return dict(self.tables["gpu"])

    @property
    def gpus(self) -> int:
        """GPUs of a node."""
        return int(self.tables.get("gpus_per_node", 8))

    def tier(self, name: str) -> dict[str, Any] | None:
        """Return a tier's table; ``"nic"`` is that of the NICs, whatever they lead to."""
        tiers: Mapping[str, Any] = self.tables["tier"]
        table = tiers.get("rail", tiers.get("leaf")) if name == "nic" else tiers.get(name)
        return None if table is None else dict(table)

    def link(self, tier: str, nominal: float | None, source: str) -> dict[str, Any]:
        """Return bandwidth, effective and latency of a link like those of a tier, with sources.

        ``nominal`` in bytes/s is what the file says, and ``source`` where it says so; None: what the preset has. The
        effective bandwidth keeps the preset's ratio.
        """
        table = self.tier(tier) or self.tier("nic") or {}
        ratio_table = table if "bandwidth" in table else self.tier("nic") or {}
        old = parse(ratio_table["bandwidth"], "bandwidth", f"{self.name}: bandwidth")
        effective = parse(
            ratio_table.get("effective", ratio_table["bandwidth"]), "bandwidth", f"{self.name}: effective"
        )
        rate = old if nominal is None else nominal
        return {
            "bandwidth": gb(rate),
            "effective": gb(rate * effective / old),
            "latency": table["latency"],
            "source": {
                "bandwidth": f"assumed: as {self.name}" if nominal is None else source,
                "effective": f"derived: effective over nominal as {self.name}",
                "latency": f"assumed: as {self.name}",
            },
        }

    def nvlink(self) -> float:
        """Return the nominal bytes/s of one NVLink and direction.

        Raises
        ------
        InputError
            If the preset's GPU is not known.
        """
        node = self.tables["tier"]["node"]
        nominal = parse(node["bandwidth"], "bandwidth", "tier.node.bandwidth")
        if node.get("mesh"):
            return nominal
        model = self.tables["gpu"].get("model")
        if model not in NVLINKS:
            raise InputError(f"like: how many NVLinks {model} has is not known; name a preset such as h100-4x8-rail")
        return nominal / NVLINKS[model]


def gb(rate: float) -> str:
    """Return bytes/s as text for a topology file."""
    return f"{rate / 1e9:.9g} GB/s"


def us(seconds: float) -> str:
    """Return seconds as text for a topology file."""
    return f"{seconds * 1e6:.9g} us"
