"""Load matrices as DeepSeek's EPLB takes them: picks of experts [layers, experts] or [steps, layers, experts].

A npy file, a npz file with an array ``weight``, ``expert_load``, ``loads`` or ``load``, or a tensor saved by torch.
Layers are all MoE layers, or all decoder layers.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from moesim.base.arrays import Array
from moesim.base.errors import FormatError
from moesim.base.units import count
from moesim.spec import ModelSpec
from moesim.trace.formats import torch_file
from moesim.trace.formats.common import BROKEN_NPY, head, one_line, origin_of, phase_code, problems_of
from moesim.trace.formats.model import check_options, given_model, moe_part
from moesim.trace.formats.npz import load_arrays
from moesim.trace.trace import PREFILL, Trace

_NPY: Final = b"\x93NUMPY"
_NAMES: Final = ("weight", "expert_load", "loads", "load")


def sniff(path: str | Path) -> bool:
    """Return whether this is a npy file, or a npz file with an array of loads and none of experts or counts."""
    if head(path, 6) == _NPY:
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
    except Exception:  # damaged archives raise nearly everything, and a sniff must not
        return False
    return bool(names & set(_NAMES)) and names <= {*_NAMES, "physical_to_logical", "logical_count"}


def read(
    path: str | Path,
    *,
    model: str | Path | ModelSpec | None = None,
    scale: float | None = None,
    phase: str | None = None,
    domain: str = "unlabelled",
    origin: Mapping[str, Any] | None = None,
) -> Trace:
    """Read a matrix of loads as counts.

    Parameters
    ----------
    model
        The model of the loads: name of a preset, its config.json, or a spec.
    scale
        Factor that makes counts of loads that are not whole numbers, e.g. 1e6 of shares; they are rounded.
    phase
        Phase of all of it; prefill if not given, and the origin says so.
    domain
        Name of what was served.
    origin
        Facts to add to the origin.

    Raises
    ------
    FormatError
        If the file is damaged, does not fit the model, or its loads are not whole numbers and ``scale`` is not given.
    """
    check_options(model=model, scale=scale, phase=phase, domain=domain, origin=origin)
    name, array = _load(path)
    with problems_of(path):
        spec = given_model(model)
        counts = _counts(path, name, array, scale)
        if counts.shape[2] != spec.experts:
            found = f"expected {count(spec.experts, 'expert')} as in {spec.name}, found {counts.shape[2]}"
            if counts.shape[2] == spec.top_k:
                found += "; are these picks [tokens, layers, picks]? they go into a npz file, as an array named experts"
            raise FormatError(path, name, found)
        counts = moe_part(path, name, counts, spec)
        if not counts.any():
            raise FormatError(path, name, "expected loads, found zeros only; record while requests run")
        return Trace(
            spec,
            given_counts=counts,
            phase=np.full(len(counts), phase_code(phase, PREFILL)),
            domains=(domain,),
            origin=origin_of(
                path,
                "eplb-loads",
                "unknown",
                spec,
                origin,
                scale=scale,
                phase="" if phase else "assumed prefill, the file does not say",
            ),
        )


def _load(path: str | Path) -> tuple[str, Any]:
    if head(path, 6) == _NPY:
        try:
            return "", np.load(path, allow_pickle=False)
        except BROKEN_NPY as error:
            raise FormatError(path, "", f"not a complete npy file ({one_line(error)}); save it again") from None
    if torch_file.pickled_names(path):
        return "", torch_file.load(path)
    arrays = load_arrays(path)
    if (name := next((name for name in _NAMES if name in arrays), None)) is None:
        raise FormatError(path, "", f"expected an array {', '.join(_NAMES)}, found {', '.join(sorted(arrays))[:80]}")
    return name, arrays[name]


def _counts(path: str | Path, name: str, value: Any, scale: float | None) -> Array:
    """Return int64 [steps, layers, experts]."""
    if not isinstance(value, np.ndarray) or value.ndim not in (2, 3) or value.dtype.kind not in "iuf":
        shape = list(value.shape) if isinstance(value, np.ndarray) else type(value).__name__
        raise FormatError(path, name, f"expected loads [layers, experts] or [steps, layers, experts], found {shape}")
    array = value if value.ndim == 3 else value[None]
    loads = array.astype(np.float64) * (1.0 if scale is None else scale)
    broken = np.argwhere(~((loads >= 0) & (loads <= 2.0**52)))  # nan is neither
    if len(broken):
        step, layer, expert = broken[0]
        raise FormatError(
            path, name,
            f"expected loads from 0 to 2^52, found {loads[step, layer, expert]:g} (step {step}, layer {layer}, expert "
            f"{expert})",
        )  # fmt: skip
    if scale is None and (loads != np.rint(loads)).any():
        raise FormatError(
            path,
            name,
            "expected whole numbers, found shares; give scale=1000000 or another factor",
        )
    return np.rint(loads).astype(np.int64)
