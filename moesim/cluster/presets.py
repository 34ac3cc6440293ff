"""Where the shipped topologies are: ``topologies/`` of a checkout, or ``share/moesim`` of an installation."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Final

from moesim.base.errors import InputError, UnknownName

_PACKAGE = Path(__file__).resolve().parents[1]


def preset_folder() -> Path:
    """Return the folder of the presets.

    Raises
    ------
    InputError
        If the installation lost it.
    """
    # the top-level folder is the truth; a wheel installs it as data files (pyproject.toml): into the environment, with
    # `pip install --user` under the user's base, with `--target` beside the package
    user = sysconfig.get_path("data", sysconfig.get_preferred_scheme("user"))
    installed = [Path(base, "share/moesim/topologies") for base in (sysconfig.get_path("data"), user, _PACKAGE.parent)]
    for folder in (_PACKAGE.parent / "topologies", *installed):
        if (folder / "h100-4x8-rail.toml").is_file():
            return folder
    raise InputError(f"{_PACKAGE}: the topologies are missing from this installation; install moesim again")


_ELSE: Final = "or give a file; another number of nodes is an edit of a preset, --set nodes=16"


def preset_names() -> list[str]:
    """Return the names of the presets."""
    return sorted(path.stem for path in preset_folder().glob("*.toml"))


def preset_path(name: str) -> Path:
    """Return the file of a preset.

    Raises
    ------
    UnknownName
        If there is none of that name.
    """
    names = preset_names()
    if name not in names:
        raise UnknownName("topology", name, names, _ELSE)
    return preset_folder() / f"{name}.toml"
