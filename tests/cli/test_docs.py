"""docs/cli.md is what the command line says of itself."""

from __future__ import annotations

import runpy
from pathlib import Path

from typer.main import get_command

from moesim.cli.app import app


def test_the_page_is_up_to_date(root: Path):
    made = runpy.run_path(str(root / "docs" / "make_cli.py"))["page"]()
    found = (root / "docs" / "cli.md").read_text(encoding="utf-8")
    assert found == made, "docs/cli.md is out of date: run  python docs/make_cli.py"


def test_every_verb_and_every_option_has_a_help_text():
    commands = [("moesim", get_command(app))]
    while commands:
        name, command = commands.pop()
        assert command.help, name
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{name} {parameter.name}"
        commands += [(f"{name} {child}", value) for child, value in getattr(command, "commands", {}).items()]
