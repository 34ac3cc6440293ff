"""The topology that NCCL and RCCL dump (``NCCL_TOPO_DUMP_FILE``), and the PCIe trees that clouds ship."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from moesim.base.errors import FormatError
from moesim.cluster.formats.node import NODE, PIX, PXB, SYS, Nic, NodeFacts, node_tables
from moesim.cluster.formats.text import read_text

_GPU_CLASSES = ("0x0302", "0x0380", "0x1200")
_NIC_CLASSES = ("0x0207", "0x0200")
_SWITCH_CLASS = "0x068000"
_HINT = {"80": "a100-4x8-rail", "90": "h100-4x8-rail", "100": "b200-4x8-rail", "103": "b300-4x8-rail"}
_DEEPEST = 64


@dataclass(frozen=True)
class _Device:
    element: Element
    above: tuple[int, ...]  # ids of the elements from the CPU down to the PCIe slot
    busid: str


def sniff(path: Path, head: bytes) -> bool:
    """Return whether the file looks like a dump of NCCL."""
    text = head.decode("utf-8", "replace")
    return re.search(r"<system\b", text) is not None and re.match(r"\ufeff?\s{0,80}<", text) is not None


def read(path: Path, *, like: str | None = None) -> dict[str, Any]:
    """Return the tables of a cluster of this one node; ``nodes = N`` makes more.

    Parameters
    ----------
    like
        Preset with the constants that the dump does not tell; None: the one of the GPU's architecture.

    Raises
    ------
    FormatError
        Names the element that is not understood.
    """
    return node_tables(facts(path), like)


def facts(path: Path) -> NodeFacts:
    """Return what the dump says.

    Raises
    ------
    FormatError
        Names the element that is not understood.
    """
    root = _parse(path)
    gpus: list[_Device] = []
    nics: list[_Device] = []
    for cpu in root:
        if cpu.tag not in ("cpu", "nic", "gpu"):
            raise FormatError(path, f"<{_short(cpu.tag)}>", "expected <cpu> inside <system>")
        _walk(cpu, (id(cpu),), gpus, nics, path)
    if not gpus:
        raise FormatError(path, "<system>", "holds no GPU: no <gpu>, and no <pci> of class 0x0302")
    gpus.sort(key=lambda device: _number(device.element, "dev", path, default=0))
    switched, direct = _nvlinks(gpus, path)
    meet = {
        (i, j): _class(a.above, b.above) for i, a in enumerate(gpus) for j, b in enumerate(gpus[i + 1 :], i + 1)
    }  # fmt: skip
    found = [nic for device in nics for nic in _ports(device, gpus, path)]
    return NodeFacts(path, len(gpus), meet, switched, direct, tuple(found), _hint(gpus))


def _parse(path: Path) -> Element:
    from defusedxml.common import DefusedXmlException
    from defusedxml.ElementTree import ParseError, fromstring

    text = read_text(path)
    if text.count("<") > 200_000:
        raise FormatError(path, "", "more than 200,000 elements; give the dump of one node")
    try:
        # the parser honours an encoding that the prologue names; the text is decoded already
        root: Element = fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", text), forbid_dtd=True)
    except DefusedXmlException as error:
        raise FormatError(
            path, "", f"a DTD or an entity ({type(error).__name__}) has no place here; remove it"
        ) from None
    except (ParseError, ValueError, RecursionError) as error:
        raise FormatError(path, "", f"expected XML: {error}") from None
    if root.tag != "system":
        raise FormatError(path, f"<{_short(root.tag)}>", "expected <system> at the top")
    return root


def _walk(
    element: Element, above: tuple[int, ...], gpus: list[_Device], nics: list[_Device], path: Path
) -> None:  # fmt: skip
    if len(above) > _DEEPEST:
        raise FormatError(path, f"<{_short(element.tag)}>", f"nested deeper than {_DEEPEST} levels")
    for child in element:
        bus = child.get("busid", "").lower()
        if child.tag == "pci":
            kind = child.get("class", "").lower()
            inner = child.find("gpu"), child.find("nic")
            device = _Device(child, (*above, id(child)), bus)
            if inner[0] is not None:
                gpus.append(_Device(inner[0], device.above, bus))
            elif inner[1] is not None:
                nics.append(_Device(inner[1], device.above, bus))
            elif kind.startswith(_GPU_CLASSES):
                gpus.append(device)
            elif kind.startswith(_NIC_CLASSES):
                nics.append(device)
            else:
                _walk(child, device.above, gpus, nics, path)
        elif child.tag == "nic":
            nics.append(_Device(child, (*above, id(child)), bus))
        elif child.tag not in ("gpu", "nvlink", "pcilink", "c2c", "net", "xgmi"):
            raise FormatError(
                path, f"<{_short(child.tag)} busid={bus[:20]!r}>", "expected <pci>, <nic>, <gpu> or <nvlink>"
            )


def _nvlinks(gpus: list[_Device], path: Path) -> tuple[int | None, dict[tuple[int, int], int]]:
    """Return links of each GPU to switches (None: the file does not say), and direct links by pair."""
    if all(device.element.tag == "pci" for device in gpus):
        return None, {}
    index = {device.busid: i for i, device in enumerate(gpus)}
    switched = [0] * len(gpus)
    direct: dict[tuple[int, int], int] = {}
    for i, device in enumerate(gpus):
        for link in (*device.element.findall("nvlink"), *device.element.findall("xgmi")):
            count, target = _number(link, "count", path), link.get("target", "").lower()
            if link.get("tclass", "").lower() == _SWITCH_CLASS:
                switched[i] += count
            elif target in index and index[target] != i:
                pair = min(i, index[target]), max(i, index[target])
                direct[pair] = max(direct.get(pair, 0), count)
            else:
                raise FormatError(
                    path,
                    f"<nvlink target={target[:20]!r}>",
                    "leads to no GPU of this node and to no NVSwitch (0x068000)",
                )
    if len(set(switched)) > 1:
        raise FormatError(
            path, "<nvlink>", f"GPUs have {sorted(set(switched))} links to NVSwitches; expected one number"
        )
    return switched[0], direct


def _ports(device: _Device, gpus: list[_Device], path: Path) -> list[Nic]:
    # the deeper two devices meet in the PCIe tree, the nearer they are; a CPU is farther than any switch
    distance = tuple(_steps(gpu.above, device.above) for gpu in gpus)
    nets = device.element.findall("net")
    if not nets:
        return [Nic(device.busid or "nic", distance)]
    out = []
    for net in nets:
        speed = _number(net, "speed", path, default=0)
        guid = net.get("guid")
        try:
            value = None if guid is None else int(guid, 16)
            swapped = None if not value else int.from_bytes(value.to_bytes(8, "little"), "big")
        except (ValueError, OverflowError):
            raise FormatError(
                path, f"<net name={net.get('name', '')[:20]!r}>", f"guid {guid!r} is no number of 64 bits"
            ) from None
        out.append(Nic(net.get("name", "net")[:64], distance, speed * 125_000.0 or None, swapped))
    return out


def _common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _steps(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    common = _common(a, b)
    return 1000 if common == 0 else 500 if common == 1 else len(a) + len(b) - 2 * common


def _class(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    common = _common(a, b)
    if common < 2:
        return SYS if common == 0 else NODE
    return PIX if max(len(a), len(b)) - common == 1 else PXB


def _number(element: Element, key: str, path: Path, default: int | None = None) -> int:
    text = element.get(key)
    if text is None and default is not None:
        return default
    if text is None or not re.fullmatch(r"\d{1,9}", text):
        raise FormatError(path, f"<{_short(element.tag)}>", f"{key}: expected a number, got {text!r}"[:200])
    return int(text)


def _hint(gpus: list[_Device]) -> str:
    first = gpus[0].element
    if first.get("gcn", "").startswith("gfx94"):
        return "mi300x-4x8-rail"
    return _HINT.get(first.get("sm", ""), "h100-4x8-rail")


def _short(tag: object) -> str:
    return str(tag)[:40]
