"""What a topology file may say; checked here, built in :mod:`moesim.cluster.shapes`.

The models keep quantities as the text the file had, so that writing a description gives back what was read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from moesim.base.errors import FormatError, InputError, UnknownName
from moesim.base.units import parse

SCHEMA = 1
MAX_RANKS = 16_384
CONSTANTS = (
    "memory", "flops_bf16", "flops_fp8", "hbm_bandwidth", "bandwidth", "effective", "oversubscription", "latency",
    "direct_dispatch_floor", "direct_combine_floor", "direct_combine_bandwidth", "hierarchical_floor",
    "hierarchical_copy_bandwidth", "collective_floor", "one_sided_floor", "one_sided_read", "gemm_share", "hbm_share",
    "attention_share", "launch",
)  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*")
_TAG = re.compile(r"(measured|datasheet|assumed|derived): \S")


def _quantity(kind: str, positive: bool) -> Any:
    def check(value: object) -> object:
        try:
            number = parse(value, kind, "")
        except InputError as error:
            raise ValueError(str(error).removeprefix(": ")) from None
        if positive and number == 0:
            raise ValueError(f"expected more than zero, got {value!r}; to take a link away name it in `without`")
        return value

    return BeforeValidator(check)


def _name(value: str) -> str:
    if not _NAME.fullmatch(value) or "->" in value:
        raise ValueError(f"expected a name of letters, digits, '_', '.', '/' and '-', got {value!r}")
    return value


def _check_tag(key: str, value: str) -> None:
    if not _TAG.match(value):
        raise ValueError(
            f'{key}: expected "measured: ...", "datasheet: ...", "derived: ..." or "assumed: ..." with where it is '
            f"from, got {value!r}"
        )


def _text(unit: str, example: str) -> WithJsonSchema:
    """Say to editors what a quantity looks like; the check itself is :func:`_quantity`."""
    number = r"\s*\+?(\d+(\.\d*)?([eE][+-]?\d+)?|\.\d+)"
    return WithJsonSchema({"type": "string", "pattern": rf"^{number}\s*({unit})\s*$", "examples": [example]})


_PREFIX = "([kKMGTP]|[KMGT]i)?"
Bandwidth = Annotated[str, _quantity("bandwidth", True), _text(f"{_PREFIX}[Bb]/s|[kKMGTP]?bps", "450 GB/s")]
Latency = Annotated[str, _quantity("time", False), _text("s|ms|us|µs|ns|min|h", "0.5 us")]
Memory = Annotated[str, _quantity("bytes", True), _text(f"{_PREFIX}B", "80 GB")]
Flops = Annotated[str, _quantity("flops", True), _text("[kKMGTP]?(FLOP/s|FLOPS)", "989 TFLOP/s")]
Name = Annotated[str, AfterValidator(_name)]
Fraction = Annotated[float, Field(gt=0, le=1)]


class Strict(BaseModel):
    """A table in which every key is known."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Sourced(Strict):
    """A table of constants; ``source`` tells where each is from (one text for all, or one per key)."""

    source: str | dict[str, str] | None = None

    @model_validator(mode="after")
    def _sources_are_tagged(self) -> Sourced:
        if isinstance(self.source, str):
            _check_tag("source", self.source)
            return self
        known = set(type(self).model_fields) - {"source"}
        for key, text in (self.source or {}).items():
            if key not in known:
                raise ValueError(f"source: {UnknownName('key', key, known)}")
            _check_tag(f"source.{key}", text)
        return self


class Gpu(Sourced):
    """One GPU: datasheet peaks, dense."""

    model: Name
    memory: Memory
    flops_bf16: Flops
    flops_fp8: Flops | None = None  # None: no fp8 units, fp8 runs at the bf16 rate
    hbm_bandwidth: Bandwidth
    speed: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0


class GpuChange(Sourced):
    """What one ``[[node]]`` changes about its GPUs."""

    model: Name | None = None
    memory: Memory | None = None
    flops_bf16: Flops | None = None
    flops_fp8: Flops | None = None
    hbm_bandwidth: Bandwidth | None = None
    speed: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


def _reachable(bandwidth: str | None, effective: str | None) -> None:
    if bandwidth is None or effective is None:
        return
    if parse(effective, "bandwidth", "effective") > parse(bandwidth, "bandwidth", "bandwidth"):
        raise ValueError(f"`effective` {effective!r} is more than the nominal `bandwidth` {bandwidth!r}; correct one")


class Tier(Sourced):
    """Links of one tier, per direction."""

    bandwidth: Bandwidth
    effective: Bandwidth | None = None  # what software reaches; None: the nominal bandwidth
    latency: Latency

    @model_validator(mode="after")
    def _effective_is_reachable(self) -> Tier:
        _reachable(self.bandwidth, self.effective)
        return self


class NodeTier(Tier):
    """GPU to its node's switch (NVSwitch, or a PCIe switch where nothing else is), or GPU to GPU."""

    mesh: bool = False  # no switch: each two GPUs of a node have a link of this bandwidth
    nics_on: Literal["gpu", "switch"] = "gpu"  # "switch": all GPUs of the node share its NICs through the switch


class PcieTier(Tier):
    """GPU to NIC. With several GPUs on a NIC this is where they meet."""


class LeafTier(Tier):
    """NIC to a leaf switch that serves all NICs of its nodes."""

    gpus_per_nic: Annotated[int, Field(ge=1)] = 1
    nodes_per_leaf: Annotated[int, Field(ge=1)] | None = None  # None: one leaf for all


class RailTier(LeafTier):
    """NIC to the leaf switch of its rail."""

    rails: Annotated[int, Field(ge=1)] | None = None  # None: one per GPU of a node
    pxn: bool = False  # hop over NVLink to the GPU on the target's rail before leaving the node


class SpineTier(Sourced):
    """Leaf to spine. The bandwidth of an uplink follows from the oversubscription unless it is given."""

    switches: Annotated[int, Field(ge=1)] = 1
    oversubscription: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    bandwidth: Bandwidth | None = None
    effective: Bandwidth | None = None
    latency: Latency

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> SpineTier:
        if (self.oversubscription is None) == (self.bandwidth is None):
            raise ValueError("give either `oversubscription` or `bandwidth` (of one leaf-spine link)")
        if self.effective is not None and self.bandwidth is None:
            raise ValueError("`effective` needs `bandwidth`; with `oversubscription` it follows from the tier below")
        _reachable(self.bandwidth, self.effective)
        return self


def _seconds(latency: str) -> float:
    return parse(latency, "time", "latency")


class Tiers(Strict):
    """The common shapes, bottom up."""

    node: NodeTier | None = None
    pcie: PcieTier | None = None
    rail: RailTier | None = None
    leaf: LeafTier | None = None
    spine: SpineTier | None = None

    @model_validator(mode="after")
    def _fits(self) -> Tiers:
        if self.rail is not None and self.leaf is not None:
            raise ValueError("give [tier.rail] or [tier.leaf], not both")
        if self.rail is None and self.leaf is None and (self.spine or self.pcie):
            raise ValueError("[tier.spine] and [tier.pcie] need a [tier.rail] or [tier.leaf]")
        if self.node is not None and self.node.mesh and self.node.nics_on == "switch":
            raise ValueError("[tier.node]: a mesh has no switch for the NICs; leave out `nics_on`")
        scale_out = self.rail or self.leaf
        if scale_out is not None and self.pcie is None:
            on_switch = self.node is not None and self.node.nics_on == "switch"
            if on_switch or scale_out.gpus_per_nic > 1:
                raise ValueError("NICs that several GPUs share need a [tier.pcie]: the link between them and the NIC")
            if self.node is not None and _seconds(scale_out.latency) <= _seconds(self.node.latency):
                # else GPUs of one node would talk over their common leaf, which is as near as their own switch
                raise ValueError(
                    f"the NIC's latency {scale_out.latency!r} must be more than that of [tier.node], "
                    f"{self.node.latency!r}; correct it, or add a [tier.pcie]"
                )
        return self


class Constants(Sourced):
    """Constants of kernels and libraries as measured on this cluster; what is left out holds as published.

    Floors are latencies of one exchange at next to no load, end to end. Shares are of peak arithmetic inside a tile, of
    HBM bandwidth, and of bf16 peak in prefill attention.
    """

    direct_dispatch_floor: Latency | None = None
    direct_combine_floor: Latency | None = None
    direct_combine_bandwidth: Bandwidth | None = None
    hierarchical_floor: Latency | None = None
    hierarchical_copy_bandwidth: Bandwidth | None = None  # of one SM
    collective_floor: Latency | None = None  # 8 ranks
    one_sided_floor: Latency | None = None  # 8 ranks
    one_sided_read: Latency | None = None
    gemm_share: Fraction | None = None
    hbm_share: Fraction | None = None
    attention_share: Fraction | None = None
    launch: Latency | None = None


class Node(Strict):
    """Nodes that differ from the rest."""

    name: Name | None = None
    count: Annotated[int, Field(ge=1, le=MAX_RANKS)] = 1
    gpus: Annotated[int, Field(ge=1, le=MAX_RANKS)] | None = None
    gpu: GpuChange | None = None
    node_bandwidth: Bandwidth | None = None  # replaces tier.node.bandwidth, effective in proportion
    nic_bandwidth: Bandwidth | None = None  # replaces tier.rail or tier.leaf bandwidth, effective in proportion


class Link(Tier):
    """A cable between two named vertices; both directions have this bandwidth."""

    ends: Annotated[list[Name], Field(min_length=2, max_length=2)]
    tier: Name = "link"


class Description(Strict):
    """A whole topology file, inheritance resolved."""

    schema_version: Literal[1] = Field(alias="schema")
    name: Name
    about: str | None = None
    notes: list[str] | None = None  # what an importer left out or had to assume
    nodes: Annotated[int, Field(ge=1, le=MAX_RANKS)] | None = None
    gpus_per_node: Annotated[int, Field(ge=1, le=MAX_RANKS)] | None = None
    ranks: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None
    through_ranks: bool = False
    switches: list[Name] | None = None
    without: list[str] | None = None
    degrade: dict[str, Fraction] | None = None
    gpu: Gpu
    constants: Constants | None = None
    tier: Tiers = Tiers()
    node: list[Node] | None = None
    link: list[Link] | None = None

    @model_validator(mode="after")
    def _sized(self) -> Description:
        if (self.nodes is None) == (self.node is None):
            raise ValueError("give either `nodes` (a number) or [[node]] tables")
        if self.gpus_per_node is None and (self.node is None or any(entry.gpus is None for entry in self.node)):
            raise ValueError("`gpus_per_node` is missing")
        if self.node is None:
            total = (self.nodes or 0) * (self.gpus_per_node or 0)
        else:
            total = sum(entry.count * (entry.gpus or self.gpus_per_node or 0) for entry in self.node)
        if total > MAX_RANKS:
            raise ValueError(f"{total:,} GPUs are more than moesim takes ({MAX_RANKS:,}); describe fewer nodes")
        return self


def check(raw: Mapping[str, Any], path: str) -> Description:
    """Return the checked description of a parsed file.

    Raises
    ------
    FormatError
        Names the file, the key, what was expected and what was found.
    """
    if "schema" not in raw:
        raise FormatError(path, "schema", f"missing; begin a topology file with `schema = {SCHEMA}`")
    if raw["schema"] != SCHEMA:
        raise FormatError(path, "schema", f"expected {SCHEMA}, got {raw['schema']!r}; write `schema = {SCHEMA}`")
    try:
        return Description.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise FormatError(path, _place(first["loc"]), _problem(first)) from None


def _place(location: tuple[int | str, ...]) -> str:
    place = ""
    for part in location:
        if isinstance(part, int):
            place += f"[{part}]"
        elif "(" not in part and "dict[" not in part:  # those name the alternative of a union, not a key
            key = part if part.replace("-", "_").isidentifier() else repr(part)
            place += f".{key}" if place else key
    return place


def _problem(error: Any) -> str:
    kind, found = error["type"], error["input"]
    if kind == "extra_forbidden":
        known = _known(error["loc"][:-1])
        return str(UnknownName("key", str(error["loc"][-1]), known))
    if kind == "missing":
        return "missing; add it"
    text = str(error["msg"]).removeprefix("Value error, ")
    if kind == "value_error":
        return text
    return f"{text[0].lower()}{text[1:]}, got {found!r}"


def _known(location: tuple[int | str, ...]) -> list[str]:
    model: Any = Description
    for part in location:
        if isinstance(part, int):
            continue
        fields = {(field.alias or name): field for name, field in model.model_fields.items()}
        if part not in fields:
            continue
        model = _inner_model(fields[part].annotation) or model
    return [field.alias or name for name, field in model.model_fields.items()]


def _inner_model(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _inner_model(inner)
        if found is not None:
            return found
    return None
