"""The only module that opens files: samples, files of the folders given at start, and uploads. Nothing is unpickled."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import moesim
from moesim.base.errors import FormatError, InputError, MoesimError
from moesim.cluster import Cluster
from moesim.cluster.presets import preset_names
from moesim.placement import Placement
from moesim.solve import Plan
from moesim.spec import ModelSpec
from moesim.trace import Trace
from moesim.trace.drawn import draw_tokens
from moesim.trace.formats import read_any

FOLDERS = "MOESIM_APP_DATA"
"""Environment variable with the folders that may be read, as PATH is written; set by `moesim app --data`."""
SUFFIXES = {
    "trace": ("parquet", "npz", "npy", "jsonl", "json", "csv"),
    "topology": ("toml", "xml", "yml", "yaml", "txt", "out", "topo", "conf", "json"),
    "plan": ("json", "jsonl", "csv", "yaml", "yml", "npy", "npz"),
}
"""Endings that are offered. No .pt and .pkl: such files are programs; `moesim import` reads what is data in them."""
_MOST_FILES = 300
_MOST_UNPACKED = 4 * 2**30
"""Bytes that a compressed upload may hold when unpacked."""
_MOST_TEXT = 64 * 2**20
_FIT, _EVAL = "bundled-moe-fit.parquet", "bundled-moe-eval.parquet"


def folders() -> list[Path]:
    """Return the folders given at start."""
    return [Path(part).resolve() for part in os.environ.get(FOLDERS, "").split(os.pathsep) if part]


def _bundled() -> Path:
    return Path(moesim.__file__).resolve().parents[1] / "traces"


def offered(kind: str) -> dict[str, str]:
    """Return what can be chosen without an upload: reference to label."""
    found: dict[str, str] = {}
    if kind == "trace":
        found |= {f"sample:{name}": f"sample: {name}" for name in (_FIT, _EVAL) if (_bundled() / name).is_file()}
    if kind == "topology":
        found |= {f"preset:{name}": name for name in preset_names()}
    for number, folder in enumerate(folders()):
        for path in _files(folder, SUFFIXES[kind]):
            relative = path.relative_to(folder).as_posix()
            found[f"data:{number}/{relative}"] = f"{folder.name}/{relative}"
    return found


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    found: list[Path] = []
    for at, names, files in os.walk(folder):
        names[:] = sorted(name for name in names if not name.startswith("."))
        for name in sorted(files):
            path = Path(at, name)
            # a link may lead out of the folder
            if name.lower().endswith(suffixes) and _inside(path, folder):
                found.append(path)
                if len(found) == _MOST_FILES:
                    return found
    return found


def _inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder)


def locate(reference: str) -> Path:
    """Return the file that a reference names.

    Raises
    ------
    InputError
        If it names nothing that was offered; a reference may come from an URL, so it is never trusted.
    """
    kind, _, name = reference.partition(":")
    if kind == "sample" and name in (_FIT, _EVAL) and (_bundled() / name).is_file():
        return _bundled() / name
    if kind == "data":
        number, _, relative = name.partition("/")
        given = folders()
        if number.isdigit() and int(number) < len(given):
            folder = given[int(number)]
            path = folder / relative
            if _inside(path, folder) and path.is_file():
                return path
    raise InputError(f"{reference}: is none of the files that this dashboard was started with; choose one of the list")


def stamp(reference: str) -> str:
    """Return what changes when the file behind a reference does."""
    if reference.startswith("preset:"):
        return reference
    status = locate(reference).stat()
    return f"{reference} {status.st_mtime_ns} {status.st_size}"


def read_trace(reference: str, model: str | None = None) -> Trace:
    """Read a trace that was offered."""
    return _trace(locate(reference), model)


def read_cluster(reference: str) -> Cluster:
    """Read a topology that was offered."""
    kind, _, name = reference.partition(":")
    return Cluster.preset(name) if kind == "preset" else Cluster.read(locate(reference))


def read_plan(reference: str, ranks: int, spec: ModelSpec) -> Plan | Placement:
    """Read a plan or a placement that was offered."""
    return _plan(locate(reference), ranks, spec)


def take_upload(name: str, data: bytes, kind: str, read: Callable[[Path], Any]) -> Any:
    """Return what an upload holds; its bytes are on disk only while they are read.

    Raises
    ------
    InputError
        If it is not what was expected; the message names the upload, not where it lay.
    """
    suffix = Path(name).suffix.lower()
    if suffix.lstrip(".") not in SUFFIXES[kind]:
        raise InputError(
            f"{name}: a {kind} ends in {', '.join('.' + one for one in SUFFIXES[kind])}; turn other files into "
            "these with `moesim import` or `moesim export`, which do not run what is in them"
        )
    with tempfile.TemporaryDirectory(prefix="moesim-upload-") as folder:
        # the name decides nothing but the ending: it comes from a stranger
        path = Path(folder, f"upload{suffix}")
        path.write_bytes(data)
        try:
            _bounded(path)
            return read(path)
        except MoesimError as error:
            # what is an argument in Python is a choice here
            raise InputError(str(error).replace(str(path), name).replace(" model=", " the recorded model")) from None
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, RecursionError, MemoryError) as error:
            raise InputError(
                f"{name}: cannot be read as a {kind}: {type(error).__name__}; check that the file is whole"
            ) from None


def upload_trace(name: str, data: bytes, model: str | None) -> Trace:
    """Read an uploaded trace."""
    return take_upload(name, data, "trace", lambda path: _trace(path, model))


def upload_cluster(name: str, data: bytes) -> Cluster:
    """Read an uploaded topology."""
    return take_upload(name, data, "topology", Cluster.read)


def upload_plan(name: str, data: bytes, ranks: int, spec: ModelSpec) -> Plan | Placement:
    """Read an uploaded plan or placement."""
    return take_upload(name, data, "plan", lambda path: _plan(path, ranks, spec))


def _no_program(path: Path) -> None:
    """Refuse pickles under whatever name: also where a reader would take only plain data from them."""
    with path.open("rb") as file:
        pickled = file.read(1) == b"\x80"
    if not pickled and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            pickled = any(name.endswith((".pkl", ".pickle")) for name in archive.namelist())
    if pickled:
        raise FormatError(
            path, "", "is a pickle (torch.save or the like), which the dashboard does not open; turn it into Parquet "
            "with `moesim import`"
        )  # fmt: skip


def _trace(path: Path, model: str | None) -> Trace:
    _no_program(path)
    return draw_tokens(read_any(path, **({"model": model} if model else {})))


def _plan(path: Path, ranks: int, spec: ModelSpec) -> Plan | Placement:
    _no_program(path)
    with path.open("rb") as file:
        if b'"moesim-plan/' in file.read(256):
            return Plan.read(path)
    return Placement.read(path, ranks=ranks, spec=spec)


def _bounded(path: Path) -> None:
    """Refuse what is small as a file and huge in memory."""
    unpacked = 0
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    elif path.suffix == ".parquet":
        import pyarrow.parquet

        try:
            meta = pyarrow.parquet.read_metadata(path)
        except pyarrow.ArrowInvalid:
            return  # not a whole one: who reads it says so in words
        unpacked = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
    elif path.stat().st_size > _MOST_TEXT and path.suffix not in (".npy", ".jsonl"):
        raise InputError(f"{path}: {path.stat().st_size / 1e6:.0f} MB of text are more than {_MOST_TEXT / 1e6:.0f} MB")
    if unpacked > _MOST_UNPACKED:
        raise InputError(
            f"{path}: holds {unpacked / 1e9:.1f} GB unpacked, more than {_MOST_UNPACKED / 1e9:.1f} GB; give a part of "
            "it, or start with --data and the folder that it lies in"
        )
