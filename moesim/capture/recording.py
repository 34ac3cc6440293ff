"""SGLang's own recorder: start it, let traffic pass, stop it, dump it, and read what it wrote."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from moesim.base.errors import InputError, MoesimError
from moesim.capture.http import Server, ServerError

_START: Final = "/start_expert_distribution_record"
_STOP: Final = "/stop_expert_distribution_record"
_DUMP: Final = "/dump_expert_distribution_record"
_HINT: Final = "start the server with  --expert-distribution-recorder-mode stat  (or per_pass, per_token)"


@contextlib.contextmanager
def recorded(server: Server, folder: str | Path, *, wait_s: float = 60.0, still_s: float = 1.0) -> Iterator[list[Path]]:
    """Record the traffic of a block; when it is left, also by an exception, the list holds the files that were dumped.

    Parameters
    ----------
    server
        Started with ``--expert-distribution-recorder-mode``, which says what is recorded.
    folder
        Where the server writes (``SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR``, /tmp unless set), seen from here.
    wait_s
        Seconds to wait for the files.
    still_s
        Seconds in which no file may change before they are taken for whole: ranks write one each.

    Raises
    ------
    InputError
        If the folder is not there, or no file appears in it.
    ServerError
        If the server refuses.
    """
    place = Path(folder)
    if not place.is_dir():
        raise InputError(f"{place}: no such folder; give the one that the server writes its recordings to")
    before = _sizes(place)
    files: list[Path] = []
    try:
        server.call(_START)
    except ServerError as error:
        raise ServerError(f"{error}; {_HINT}", again=error.again, status=error.status) from None
    try:
        yield files
    finally:
        # whatever ended the block, what was recorded is dumped
        server.call(_STOP)
        server.call(_DUMP)
        files += _dumped(place, before, wait_s, still_s)


def _sizes(folder: Path) -> dict[Path, tuple[int, int]]:
    found = {}
    for path in folder.glob("expert_distribution_recorder_*.pt"):
        with contextlib.suppress(OSError):
            status = path.stat()
            found[path] = (status.st_size, status.st_mtime_ns)
    return found


def _dumped(folder: Path, before: dict[Path, tuple[int, int]], wait_s: float, still_s: float) -> list[Path]:
    until = time.monotonic() + wait_s
    last: dict[Path, tuple[int, int]] = {}
    since = time.monotonic()
    while True:
        now = {path: size for path, size in _sizes(folder).items() if before.get(path) != size}
        if now != last:
            last, since = now, time.monotonic()
        if last and time.monotonic() - since >= still_s:
            return sorted(last)
        if time.monotonic() > until:
            raise InputError(
                f"{folder}: the server dumped, but no new expert_distribution_recorder_*.pt appeared in {wait_s:g} s; "
                f"give the folder it writes to (SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR); {_HINT}"
            )
        time.sleep(min(0.05, still_s))


def record_sglang(
    server: Server, folder: str | Path, output: str | Path, traffic: Callable[[], None], *,
    options: dict[str, Any] | None = None, wait_s: float = 60.0, still_s: float = 1.0,
) -> tuple[int, list[Path]]:  # fmt: skip
    """Record traffic with SGLang's recorder and write what it dumped as a trace file.

    Parameters
    ----------
    traffic
        Returns when enough has passed; what was recorded is written where it is interrupted, too.
    options
        Of the trace format: ``model`` at least.

    Returns
    -------
    Rows of the trace, and the files of the server, which stay.

    Raises
    ------
    MoesimError
        As `recorded`, or if the files do not fit the model; they stay, and the message names them.
    """
    files: list[Path] = []
    try:
        with recorded(server, folder, wait_s=wait_s, still_s=still_s) as files:
            traffic()
    except (KeyboardInterrupt, MoesimError):
        if files:
            _import(files, output, options or {}, {"interrupted": True})
        raise
    return _import(files, output, options or {}, {}), files


def _import(files: list[Path], output: str | Path, options: dict[str, Any], facts: dict[str, Any]) -> int:
    from moesim.trace.formats import import_any

    given = {**options, "origin": {**options.get("origin", {}), **facts}}
    # a folder of its own, as the server's holds earlier recordings
    aside = Path(f"{output}.recording")
    try:
        aside.mkdir(exist_ok=True)
        for file in files:
            shutil.copy2(file, aside / file.name)
        rows = import_any(aside if len(files) > 1 else aside / files[0].name, output, **given)
    except MoesimError as error:
        raise InputError(f"{error}; the recording is kept: {', '.join(map(str, files))}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return rows
