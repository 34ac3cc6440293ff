"""Topologies in TOML: reading with inheritance, and writing."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moesim.base.errors import FormatError, InputError
from moesim.base.files import write_text
from moesim.cluster.cluster import Cluster
from moesim.cluster.formats import read_tables, recognise
from moesim.cluster.overlay import overlay
from moesim.cluster.presets import preset_names, preset_path

_LARGEST = 8 * 2**20  # bytes; 32,768 free links fit
_MOST_ROWS = 65_536


def sniff(path: Path, head: bytes) -> bool:
    """Return whether the file is called TOML or begins like a topology."""
    return path.suffix == ".toml" or re.search(rb"^schema[ \t]*=", head, re.MULTILINE) is not None


def read(path: Path) -> dict[str, Any]:
    """Return the tables of a topology file, inheritance resolved.

    Raises
    ------
    FormatError
        If the file does not hold what it should.
    """
    return load(path)


def load(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the tables of a file with everything it inherits through ``base``."""
    path = path.resolve()
    if path in above:
        raise FormatError(above[-1], "base", f"{path.name} is above itself; name another base")
    raw = _parse(path)
    raw.setdefault("name", path.stem)
    if "base" not in raw:
        return raw
    base = raw.pop("base")
    if not isinstance(base, str):
        raise FormatError(path, "base", f"expected the name of a preset or of a file, got {base!r}")
    try:
        file = locate(base, path.parent)
        below = load(file, (*above, path)) if recognise(file) in ("toml", None) else read_tables(file)
    except FormatError:
        raise
    except InputError as error:
        raise FormatError(path, "base", str(error)) from None
    below.pop("about", None)
    return overlay(below, raw, path.name)


def locate(source: str | Path, folder: Path) -> Path:
    """Return the file or folder of that name, or the preset.

    Raises
    ------
    InputError
        If there is neither.
    """
    path = folder / source
    if path.is_file() or (path.is_dir() and str(source) not in preset_names()):
        return path
    if isinstance(source, Path) or path.suffix == ".toml" or len(Path(source).parts) > 1:
        raise InputError(f"{path}: there is no such file; presets are {', '.join(preset_names())}")
    return preset_path(source)


def _parse(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if len(content) > _LARGEST:
        raise FormatError(path, "", f"larger than {_LARGEST // 2**20} MiB; describe the cluster by tiers")
    if content.count(b"[[") > _MOST_ROWS:
        raise FormatError(path, "", f"more than {_MOST_ROWS:,} [[...]] tables; describe the cluster by tiers")
    try:
        return tomllib.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise FormatError(path, f"byte {error.start}", "expected UTF-8 text; save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise FormatError(path, "", f"expected TOML: {error}") from None


def write(cluster: Cluster, path: str | Path) -> None:
    """Write the description of a cluster atomically; constants keep their text and sources."""
    tables = cluster.description.model_dump(by_alias=True, exclude_none=True, exclude_defaults=True)
    write_text(path, dumps(tables))


def dumps(tables: Mapping[str, Any]) -> str:
    """Return tables as TOML text: strings, booleans, numbers, lists of them, tables and lists of tables."""
    lines: list[str] = []
    _table(tables, (), lines)
    return "\n".join(lines).strip() + "\n"


def _table(table: Mapping[str, Any], place: tuple[str, ...], lines: list[str]) -> None:
    inner = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    rows = {key: value for key, value in table.items() if _is_rows(value)}
    lines += [f"{_key(key)} = {_value(value)}" for key, value in table.items() if key not in inner and key not in rows]
    for key, value in inner.items():
        here = (*place, key)
        if not value or any(not isinstance(v, Mapping) and not _is_rows(v) for v in value.values()):
            lines += ["", f"[{'.'.join(map(_key, here))}]"]
        _table(value, here, lines)
    for key, value in rows.items():
        for row in value:
            lines += ["", f"[[{'.'.join(map(_key, (*place, key)))}]]"]
            _table(row, (*place, key), lines)


def _is_rows(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def _key(key: str) -> str:
    plain = key and all(c.isascii() and (c.isalnum() or c in "_-") for c in key)
    return key if plain else _value(key)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON escapes are TOML escapes; only DEL must not stand raw in TOML
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    raise TypeError(f"no TOML for {type(value).__name__}")
