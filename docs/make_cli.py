"""Write docs/cli.md from the command line itself: `python docs/make_cli.py`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from moesim.cli.app import app

HEAD = """# Command line

Made by `python docs/make_cli.py`; a test compares the two.

stdout carries data (tables for people, JSON with `--json`), stderr progress and warnings. Exit codes: 0 done, 1 an
error in one line, 2 usage, 3 proven infeasible, 130 interrupted.
"""


def page() -> str:
    """Return the text of docs/cli.md."""
    return "\n".join([HEAD, *_verbs("moesim", get_command(app))])


def _verbs(path: str, command: Any) -> Iterator[str]:
    if hasattr(command, "commands"):
        for name, child in command.commands.items():
            yield from _verbs(f"{path} {name}", child)
        return
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
    needed = [f"{p.opts[0]} {_value(p)}" for p in options if p.required]
    usage = " ".join([path, *(str(p.metavar) for p in arguments), *needed, "[OPTIONS]"])
    yield f"## {path}\n\n{_plain(command.help)}\n\n```\n{usage}\n```\n"
    yield "| argument or option | default | what it is |\n|---|---|---|"
    for p in arguments:
        yield f"| `{p.metavar}` | required | {_plain(p.help)} |"
    for p in options:
        names = ", ".join(f"`{name}`" for name in p.opts)
        value = "" if p.is_flag else " " + _value(p).replace("|", "\\|")
        yield f"| {names}{value} | {_default(p)} | {_plain(p.help)} |"
    yield ""


def _value(parameter: Any) -> str:
    return str(parameter.metavar or "VALUE")


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    return "" if parameter.is_flag or parameter.default is None else f"`{parameter.default}`"


def _plain(text: str | None) -> str:
    text = re.sub(r"\[/?[a-z]+\]", "", text or "")
    return "\n\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n", text)).replace("|", "\\|")


if __name__ == "__main__":
    (Path(__file__).parent / "cli.md").write_text(page(), encoding="utf-8")
