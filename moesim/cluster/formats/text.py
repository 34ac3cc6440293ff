"""What importers of text share: bounded reading, names, host lists."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from moesim.base.errors import FormatError, InputError

LARGEST = 8 * 2**20  # bytes; the dump of a fabric of 40 switches has 0.3 MB
_LONGEST = 2**17  # characters of a line: a list of 10,000 hosts fits
_MOST_LINES = 300_000
MOST_HOSTS = 16_384
_ESCAPE = re.compile(r"\x1b\[[0-9;]{0,16}[A-Za-z]")
_RANGES = re.compile(r"([^\[\],\s]*)\[([0-9,\-]+)\]([^\[\],\s]*)|([^\[\],\s]+)")


def read_text(path: Path) -> str:
    """Return the text of a file without terminal escapes.

    Raises
    ------
    FormatError
        If it is no UTF-8 text, or larger than any dump.
    InputError
        If it cannot be read.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if len(content) > LARGEST:
        raise FormatError(path, "", f"larger than {LARGEST // 2**20} MiB; give the dump of one cluster")
    try:
        return without_escapes(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise FormatError(path, f"byte {error.start}", "expected UTF-8 text; save the output again") from None


def read_lines(path: Path) -> list[str]:
    """Return the lines of a file that is read line by line.

    Raises
    ------
    FormatError
        If it is no text of lines that a tool prints.
    InputError
        If it cannot be read.
    """
    lines = read_text(path).splitlines()
    if len(lines) > _MOST_LINES:
        raise FormatError(path, "", f"more than {_MOST_LINES:,} lines; give the dump of one cluster")
    for number, line in enumerate(lines, 1):
        if len(line) > _LONGEST:
            raise FormatError(path, f"line {number}", f"longer than {_LONGEST:,} characters; this is no such dump")
    return lines


def without_escapes(text: str) -> str:
    """Return text without the colours and underlines of a terminal."""
    return _ESCAPE.sub("", text)


def clean(name: str) -> str:
    """Return a name that a topology file may hold: other characters become underscores."""
    kept = re.sub(r"[^A-Za-z0-9_./-]", "_", name.strip()).replace("->", "_").lstrip("./-")
    return kept or "unnamed"


def dotless(name: str) -> str:
    """Return a node's name; its dots would end it, as in ``node0.gpu3``."""
    return clean(name).replace(".", "_")


def distinct(names: Iterable[str]) -> list[str]:
    """Return the names, with ``_2``, ``_3`` behind those that came before."""
    taken: set[str] = set()
    out = []
    for name in names:
        candidate, number = name, 1
        while candidate in taken:
            number += 1
            candidate = f"{name}_{number}"
        taken.add(candidate)
        out.append(candidate)
    return out


def hosts(text: str, path: Path, place: str) -> list[str]:
    """Return the names of a host list: ``n[01-03,7],login`` is n01, n02, n03, n7, login.

    Raises
    ------
    FormatError
        If a range is broken, or the list is longer than any cluster.
    """
    found: list[str] = []
    end = 0
    for match in _RANGES.finditer(text):
        if text[end : match.start()].strip(", \t"):
            break
        end = match.end()
        if match[4] is not None:
            found.append(match[4])
        else:
            found += [f"{match[1]}{number}{match[3]}" for number in _numbers(match[2], path, place)]
        if len(found) > MOST_HOSTS:
            raise FormatError(path, place, f"more than {MOST_HOSTS:,} hosts; describe a smaller cluster")
    if text[end:].strip(", \t"):
        raise FormatError(path, place, f"expected a host list such as n[01-16], got {text[:80]!r}")
    return found


def _numbers(ranges: str, path: Path, place: str) -> list[str]:
    out: list[str] = []
    for part in ranges.split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or len(first) > 9 or len(last) > 9:
            raise FormatError(path, place, f"expected numbers such as 01-16 in brackets, got {part[:80]!r}")
        low, high = int(first), int(last or first)
        if not 0 <= high - low < MOST_HOSTS:
            raise FormatError(path, place, f"range {part} is empty or longer than {MOST_HOSTS:,}; correct it")
        out += [f"{number:0{len(first)}d}" for number in range(low, high + 1)]
    return out
