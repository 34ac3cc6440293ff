"""Generic importer: npz files with named arrays, of tokens or of counts.

Arrays of tokens (T tokens, S sequences; the first name found counts):

* ``experts`` (``routes``, ``topk_ids``, ``topk_idx``) integers [T, L, K], logical ids, -1 = none: required
* ``weights`` (``topk_weights``, ``topk_w``) floats [T, L, K]
* ``offsets`` [S + 1], where each sequence begins, or ``request`` (``request_id``) [T]
* ``position``, ``step``, ``source`` (``rank``) integers [T]; ``phase`` codes or names [T]
* ``domain`` (``category``, ``dataset``) names or codes, [T] or [S]
* ``<domain>_experts``, ``<domain>_weights``, ``<domain>_offsets``, ... instead: one set of arrays a domain

Arrays of counts: ``counts`` [L, E] or [steps, L, E], or one such array a domain, ``<domain>_counts`` or any
pattern given as ``counts="olmoe__expert_counts__*"`` in which ``*`` is the domain.

Nothing is unpickled. Object arrays, and headers that promise more than the file holds, are refused.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from moesim.base.arrays import Array
from moesim.base.errors import FormatError, InputError, UnknownName
from moesim.base.units import count
from moesim.spec import ModelSpec
from moesim.trace.formats.common import BROKEN_NPY
from moesim.trace.formats.model import check_options, given_model, resolve
from moesim.trace.trace import PHASES, PREFILL, Trace

MOST_BYTES: Final = 16 << 30
"""Arrays of more bytes in all are refused: import such a trace in parts."""
_ALIASES: Final = {
    "experts": ("experts", "routes", "topk_ids", "topk_idx"),
    "weights": ("weights", "topk_weights", "topk_w"),
    "offsets": ("offsets",),
    "request": ("request", "request_id"),
    "position": ("position",),
    "step": ("step",),
    "source": ("source", "rank"),
    "phase": ("phase",),
    "domain": ("domain", "category", "dataset"),
}
_BROKEN: Final = (*BROKEN_NPY, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError)


def sniff(path: str | Path) -> bool:
    """Return whether this is a zip archive of npy arrays."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except _BROKEN:
        return False
    return bool(names) and all(name.endswith(".npy") for name in names)


def read(
    path: str | Path,
    *,
    model: str | Path | ModelSpec | None = None,
    experts: int | None = None,
    dims: str | None = None,
    layers: Sequence[int] | None = None,
    phase: str | None = None,
    domain: str | None = None,
    counts: str | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Trace:
    """Read routing from an npz file.

    Parameters
    ----------
    model
        The model that was recorded: name of a preset, its config.json or a spec.
    experts, dims
        Instead of a model: its number of experts, and the preset whose dimensions to use.
    layers
        MoE layers (ordinals) that the arrays hold, where they hold only some of the model's.
    phase
        Name of the phase where the file has no array of phases; prefill if not given, and the origin says so.
    domain
        Name of the array that holds the domains of tokens or sequences.
    counts
        Pattern of the names of arrays of counts, ``*`` is the domain.
    origin
        Facts to add to the origin.

    Raises
    ------
    FormatError
        If an array is missing, broken, or does not fit the model.
    InputError
        If the model is not given: the largest id that occurs does not tell the number of experts.
    """
    texts = {"dims": dims, "phase": phase, "domain": domain, "counts": counts}
    check_options(model=model, experts=experts, layers=layers, origin=origin, **texts)
    arrays = load_arrays(path)
    facts: dict[str, Any] = {"captured_by": "unknown", "imported_from": Path(path).name, "format": "npz"}
    facts["synthetic"] = False
    if str(arrays.get("id_space", "logical")) != "logical":
        raise FormatError(path, "id_space", "expected logical expert ids, found physical ones; map them back first")
    try:
        if counts is not None or not _prefixes(arrays, "experts"):
            parts = _counts(path, arrays, counts)
        else:
            parts = _tokens(path, arrays, domain, phase, facts)
        counted = "given_counts" in parts
        if model is not None and layers is None:
            _leave_dense_out(parts, given_model(model), facts)
        array = parts["given_counts" if counted else "routes"]
        largest = array.shape[2] - 1 if counted else int(array.max(initial=-1))
        spec = resolve(
            path,
            "counts" if counted else "experts",
            array.shape[1:],
            counted=counted,
            largest=largest,
            model=model,
            experts=experts,
            dims=dims,
            layers=layers,
        )
        if counted and not array.any():
            raise FormatError(path, "counts", "expected counts, found zeros only; record while requests run")
        if not counted and array.size and array.max() < 0:
            raise FormatError(path, "experts", "expected picks, found -1 (none) only; record again")
        facts["model"] = spec.name
        return Trace(spec=spec, **parts, origin=facts | dict(origin or {}))
    except (FormatError, UnknownName):
        raise
    except InputError as error:
        raise FormatError(path, "", str(error)) from None


def _leave_dense_out(parts: dict[str, Any], spec: ModelSpec, facts: dict[str, Any]) -> None:
    """Keep the rows of MoE layers of arrays that have a row for every decoder layer, as engines give them."""
    name = "given_counts" if "given_counts" in parts else "routes"
    if parts[name].shape[1] != spec.num_hidden_layers or spec.num_hidden_layers == spec.layers:
        return
    for one in {name, "weights"} & set(parts):
        parts[one] = parts[one][:, list(spec.layer_ids)]
    facts["layers"] = f"rows of {count(spec.num_hidden_layers - spec.layers, 'dense layer')} were left out"


def load_arrays(path: str | Path) -> dict[str, Array]:
    """Return the arrays of a npz file; FormatError where it is damaged, absurdly large, or holds objects."""
    arrays: dict[str, Array] = {}
    left = MOST_BYTES
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                with archive.open(member) as file:
                    size = _promised_bytes(path, name, file)
                left -= member.file_size
                if size > member.file_size or left < 0:
                    limit = f"more than it holds or, with the others, than {MOST_BYTES}"
                    raise FormatError(path, name, f"promises {size} bytes, {limit}; save it again, in parts")
                # read() compares the checksum, which reading from the open member does not
                arrays[name] = np.lib.format.read_array(io.BytesIO(archive.read(member)), allow_pickle=False)
    except FileNotFoundError:
        raise FormatError(path, "", "no such file; give the path of an npz file") from None
    except _BROKEN as error:
        problem = " ".join(str(error).split())
        raise FormatError(path, "", f"not a complete npz file ({problem}); save or copy it again") from None
    return arrays


def _promised_bytes(path: str | Path, name: str, file: IO[bytes]) -> int:
    """Return the size of an array by its header, before anything is allocated for it."""
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if dtype.hasobject:
        raise FormatError(path, name, "an object array is a pickle and is never loaded; save plain arrays")
    return math.prod(shape) * dtype.itemsize


def _some(arrays: Mapping[str, Array], most: int = 8) -> str:
    names = sorted(arrays)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "no arrays") + more


def _find(arrays: Mapping[str, Array], prefix: str, what: str) -> tuple[str, Array | None]:
    for alias in _ALIASES[what]:
        if prefix + alias in arrays:
            return prefix + alias, arrays[prefix + alias]
    return "", None


def _prefixes(arrays: Mapping[str, Array], what: str) -> list[str]:
    """Return the prefixes under which arrays of that meaning occur; the bare name hides prefixed ones."""
    if any(alias in arrays for alias in _ALIASES[what]):
        return [""]
    suffixes = tuple("_" + alias for alias in _ALIASES[what])
    found = {name[: -len(s) + 1] for name in arrays for s in suffixes if name.endswith(s) and len(name) > len(s)}
    return sorted(found)


def _tokens(
    path: str | Path, arrays: Mapping[str, Array], domain: str | None, phase: str | None, facts: dict[str, Any]
) -> dict[str, Any]:
    if phase is not None and phase not in PHASES:
        raise InputError(f"option phase: expected one of {', '.join(PHASES)}, got {phase!r}")
    prefixes = _prefixes(arrays, "experts")
    groups = []
    requests = 0
    for prefix in prefixes:
        group = _group(path, arrays, prefix, domain, phase, facts)
        group["request"] = group["request"] + requests
        requests = int(group["request"].max(initial=-1)) + 1
        groups.append(group)
    for name, group in zip(prefixes, groups, strict=True):
        if group["routes"].shape[1:] != groups[0]["routes"].shape[1:]:
            expected = groups[0]["routes"].shape[1:]
            raise FormatError(
                path, f"{name}experts", f"expected [T, {expected[0]}, {expected[1]}] as in {prefixes[0]}experts"
            )
    shared = set(groups[0]).intersection(*groups) - {"domains"}
    if uneven := set().union(*groups) - shared - {"domains"}:
        raise FormatError(path, sorted(uneven)[0], "expected this array for every domain or for none of them")
    parts: dict[str, Any] = {key: np.concatenate([group[key] for group in groups]) for key in shared}
    if prefixes != [""]:
        parts["domain"] = np.repeat(np.arange(len(groups)), [len(group["routes"]) for group in groups])
        parts["domains"] = tuple(prefix.rstrip("_") for prefix in prefixes)
    elif "domains" in groups[0]:
        parts["domains"] = groups[0]["domains"]
    return parts


def _group(
    path: str | Path,
    arrays: Mapping[str, Array],
    prefix: str,
    domain: str | None,
    phase: str | None,
    facts: dict[str, Any],
) -> dict[str, Any]:
    name, routes = _find(arrays, prefix, "experts")
    if routes is None or routes.ndim != 3 or routes.dtype.kind not in "iu":
        found = "nothing" if routes is None else f"{routes.dtype} {list(routes.shape)}"
        raise FormatError(
            path, name, f"expected integer expert ids [tokens, layers, picks], found {found}; convert and save it again"
        )
    if routes.size and (routes.max() > np.iinfo(np.int16).max or routes.min() < -1):
        token, layer, pick = np.argwhere((routes > np.iinfo(np.int16).max) | (routes < -1))[0]
        raise FormatError(
            path, name,
            f"expected expert ids from -1 (none) to {np.iinfo(np.int16).max}, found {routes[token, layer, pick]} "
            f"(token {token}, layer {layer})",
        )  # fmt: skip
    T = len(routes)
    out: dict[str, Any] = {"routes": routes.astype(np.int16)}
    name, weights = _find(arrays, prefix, "weights")
    if weights is not None:
        if weights.shape != routes.shape or weights.dtype.kind != "f":
            raise FormatError(
                path, name, f"expected floats {list(routes.shape)}, found {weights.dtype} {list(weights.shape)}"
            )
        with np.errstate(over="ignore"):
            out["weights"] = weights.astype(np.float16)
    for what in ("request", "position", "step", "source"):
        name, column = _find(arrays, prefix, what)
        if column is not None:
            if column.shape != (T,) or column.dtype.kind not in "iu":
                raise FormatError(path, name, f"expected {T} integers, found {column.dtype} {list(column.shape)}")
            out[what] = column.astype(np.int64)
    name, offsets = _find(arrays, prefix, "offsets")
    if offsets is not None:
        if offsets.ndim != 1 or offsets.dtype.kind not in "iu" or len(offsets) < 1:
            raise FormatError(path, name, "expected the numbers of the rows where sequences begin, and T at the end")
        offsets = offsets.astype(np.int64)
        if offsets[0] != 0 or offsets[-1] != T or (np.diff(offsets) < 0).any():
            raise FormatError(path, name, f"expected ascending numbers from 0 to the {count(T, 'token')}")
        out.setdefault("request", np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)))
    out.setdefault("request", np.zeros(T, np.int64))
    name, phases = _find(arrays, prefix, "phase")
    if phases is None and phase is None:
        facts["phase"] = "assumed prefill, the file does not say"
    out["phase"] = (
        np.full(T, PHASES.index(phase) if phase else PREFILL) if phases is None else _phases(path, name, phases, T)
    )
    if domain is not None and domain not in arrays:
        raise InputError(f"option domain: no array {domain!r} in the file; it holds {_some(arrays)}")
    name, names = (domain, arrays[domain]) if domain is not None else _find(arrays, prefix, "domain")
    if names is not None and not prefix:
        if offsets is not None and names.shape == (len(offsets) - 1,):
            names = np.repeat(names, np.diff(offsets))
        if names.shape != (T,) or names.dtype.kind not in "iuSU":
            raise FormatError(
                path, name, f"expected a name or code for each of {count(T, 'token')} or for each sequence"
            )
        known, out["domain"] = np.unique(names, return_inverse=True)
        out["domains"] = tuple(_text(value) for value in known)
    return out


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _phases(path: str | Path, name: str, phases: Array, T: int) -> Array:
    if phases.shape != (T,):
        raise FormatError(path, name, f"expected {count(T, 'phase')}, found {list(phases.shape)}")
    if phases.dtype.kind in "SU":
        known, code = np.unique(phases, return_inverse=True)
        names = [_text(value) for value in known]
        if unknown := [value for value in names if value not in PHASES]:
            raise FormatError(path, name, f"{unknown[0]!r} is not one of {', '.join(PHASES)}")
        phases = np.array([PHASES.index(value) for value in names])[code]
    if phases.dtype.kind not in "iu" or (phases.size and (phases.min() < 0 or phases.max() >= len(PHASES))):
        raise FormatError(path, name, f"expected phase codes 0..{len(PHASES) - 1} or the names {', '.join(PHASES)}")
    return phases


def _counts(path: str | Path, arrays: Mapping[str, Array], pattern: str | None) -> dict[str, Any]:
    if pattern is None:
        pattern = "counts" if "counts" in arrays else "*_counts"
    matcher = re.compile("(.*)".join(re.escape(part) for part in pattern.split("*", 1)))
    found = {name: match for name in sorted(arrays) if (match := matcher.fullmatch(name))}
    if not found:
        raise FormatError(
            path,
            "",
            f"expected an array experts [T, L, K] or counts [steps, L, E] (pattern {pattern!r}), "
            f"found {_some(arrays)}; rename the arrays or give the pattern with counts=",
        )
    blocks: list[Array] = []
    for name in found:
        block = arrays[name][None] if arrays[name].ndim == 2 else arrays[name]
        if block.ndim != 3 or block.dtype.kind not in "iu" or block.shape[1:] != (blocks or [block])[0].shape[1:]:
            raise FormatError(
                path, name, "expected integer counts [L, E] or [steps, L, E], of one shape in all domains"
            )
        blocks.append(block.astype(np.int64))
    names = [match[1] if "*" in pattern else "unlabelled" for match in found.values()]
    domain = np.repeat(np.arange(len(blocks)), [len(block) for block in blocks])
    return {"given_counts": np.concatenate(blocks), "domain": domain, "domains": tuple(names)}
