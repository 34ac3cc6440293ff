"""What is brought back: few files of bounded size, with checksums, and how they become a tree again."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

from moesim.base.errors import FormatError
from moesim.base.files import atomic_path, write_text
from moesim.moe.gpu_run.phases import Setting
from moesim.moe.gpu_run.report import table

LIMIT_BYTES: Final = 15 * 2**20
"""Most bytes of a file that is brought back."""
TOTAL_BYTES: Final = 4 * LIMIT_BYTES
"""Most bytes of all parts together; traces beyond are left out, since an archive that lacks a part is lost whole."""
_MANIFEST: Final = "manifest.json"


def artefacts(work: Path) -> Iterator[tuple[str, Path]]:
    """Yield (name in the tree, file) of what is to be kept: weights, traces, cost tables, logs."""
    for path in sorted((work / "model").glob("*")):
        if path.name in {"config.json", "tokenizer.json", "weights.json"} or path.suffix == ".safetensors":
            yield f"weights/{path.name}", path
        elif path.suffix in {".jsonl"}:
            yield f"logs/train-{path.name}", path
    for path in sorted(work.glob("bundled-moe-*.parquet")):
        yield f"traces/{path.name}", path
    for name in ("kernel-tables.json", "profile.json"):
        if (work / "profile" / name).is_file():
            yield f"tables/{name}", work / "profile" / name
    # what a profile that was stopped had measured, row by row
    if (work / "profile" / "rows.jsonl").is_file():
        yield "logs/profile-rows.jsonl", work / "profile" / "rows.jsonl"
    for path in sorted(work.glob("*")):
        if path.suffix in {".log", ".xml", ".json"}:
            yield f"logs/{path.name}", path


def bring(setting: Setting, phases: dict[str, dict[str, Any]]) -> list[str]:
    """Write `manifest.json`, `summary.md` and one archive, cut into parts of at most `LIMIT_BYTES`, to the out folder.

    One archive, because few files come back; nothing of an earlier packing is left. Returns the names of what did not
    fit, traces first, the largest first.
    """
    chosen, left_out = list(artefacts(setting.work)), list[str]()
    while len(data := _archive(chosen)) > TOTAL_BYTES:
        chosen.sort(key=lambda item: (item[0].startswith("traces/"), item[1].stat().st_size))
        left_out.append(chosen.pop()[0])
    parts = [data[start : start + LIMIT_BYTES] for start in range(0, len(data), LIMIT_BYTES)]
    records = []
    for number, part in enumerate(parts, start=1):
        name = f"gpu-run-{number:02d}.part"
        with atomic_path(setting.out / name) as temporary:
            temporary.write_bytes(part)
        records.append({"file": name, "bytes": len(part), "sha256": hashlib.sha256(part).hexdigest()})
    for old in setting.out.glob("gpu-run-*.part"):
        if old.name not in {record["file"] for record in records}:
            old.unlink()
    names = sorted(name for name, _ in chosen)
    manifest = {"parts": records, "files": names, "left_out": left_out, "phases": phases}
    write_text(setting.out / _MANIFEST, json.dumps(manifest, indent=1) + "\n")
    write_text(setting.out / "summary.md", table(phases, setting))
    return left_out


def _archive(chosen: Sequence[tuple[str, Path]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        for name, path in chosen:
            archive.add(path, arcname=name)
    return buffer.getvalue()


def unpack(folder: Path, target: Path) -> list[str]:
    """Check the parts in `folder` and unpack them; returns the names of the files.

    Raises
    ------
    FormatError
        If a part is missing or damaged, or names a file outside of the target.
    """
    manifest = folder / _MANIFEST
    try:
        records = json.loads(manifest.read_text("utf-8"))["parts"]
    except (OSError, ValueError, KeyError) as error:
        raise FormatError(manifest, "parts", f"expected the manifest of a run, found {error!r}") from None
    data = b""
    for record in records:
        path = folder / Path(str(record["file"])).name
        try:
            part = path.read_bytes()
        except OSError as error:
            raise FormatError(path, "", f"cannot be read: {error.strerror}; bring it back again") from None
        if hashlib.sha256(part).hexdigest() != record["sha256"]:
            raise FormatError(path, "", "its sha256 differs from the manifest's; bring it back again")
        data += part
    names = []
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
        for member in archive.getmembers():
            place = PurePosixPath(member.name)
            if not member.isfile() or place.is_absolute() or ".." in place.parts:
                raise FormatError(manifest, member.name, "expected plain files inside of the archive")
            source = archive.extractfile(member)
            if source is not None:
                path = target / place
                path.parent.mkdir(parents=True, exist_ok=True)
                with atomic_path(path) as temporary:
                    temporary.write_bytes(source.read())
                names.append(member.name)
    return names
