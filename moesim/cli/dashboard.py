"""The verb app: serve the dashboard on this machine."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Annotated, Final

import typer

from moesim.base.errors import InputError, MissingExtra
from moesim.cli import screen

FOLDERS: Final = "MOESIM_APP_DATA"
"""Environment variable that tells the dashboard which folders it may read."""
LOCAL: Final = "127.0.0.1"


def app(
    data: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Folder whose traces, topologies and plans are offered; repeatable."),
    ] = None,
    port: Annotated[int, typer.Option(metavar="N", min=1, max=65535, help="Port.")] = 8501,
    host: Annotated[
        str,
        typer.Option(metavar="ADDRESS", help="Address to listen on. There is no log-in: others see what you see."),
    ] = LOCAL,
    upload: Annotated[int, typer.Option(metavar="MB", min=1, max=4096, help="Largest upload.")] = 256,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open a browser.")] = True,
) -> None:
    """Open the dashboard: inputs, plans, simulation, comparison and what-ifs in a browser.

    It listens on this machine alone, asks nothing of other machines, opens no pickles, and reads no file outside the
    folders of [bold]--data[/bold].
    """
    if importlib.util.find_spec("streamlit") is None:
        raise MissingExtra("streamlit", "app")
    folders = [folder.resolve() for folder in data or ()]
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder}: is no folder; give one that holds traces, topologies or plans")
    if host != LOCAL:
        screen.say(f"listening on {host}: whoever reaches this port sees the folders and may upload")
    settings = {
        "server.address": host,
        "server.port": port,
        "server.headless": str(not browser).lower(),
        "server.maxUploadSize": upload,
        "server.fileWatcherType": "none",
        "server.showEmailPrompt": "false",
        "browser.gatherUsageStats": "false",
        "runner.magicEnabled": "false",
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "type",
    }
    flags = [f"--{name}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "streamlit", "run", str(script()), *flags]
    environment = {**os.environ, FOLDERS: os.pathsep.join(str(folder) for folder in folders)}
    screen.say(f"dashboard at http://{host}:{port} (Ctrl-C ends it)")
    if sys.platform == "win32":
        raise typer.Exit(subprocess.run(command, env=environment, check=False).returncode)
    # the server takes the place of this process: whoever ends it leaves no server behind
    os.execve(command[0], command, environment)


def script() -> Path:
    """Return where the dashboard is: ``app/`` of a checkout, or ``share/moesim`` of an installation.

    Raises
    ------
    InputError
        If the installation lost it.
    """
    package = Path(__file__).resolve().parents[2]
    user = sysconfig.get_path("data", sysconfig.get_preferred_scheme("user"))
    bases = [Path(base, "share/moesim/app") for base in (sysconfig.get_path("data"), user, package)]
    for folder in (package / "app", *bases):
        if (folder / "streamlit_app.py").is_file():
            return folder / "streamlit_app.py"
    raise InputError(f"{package}: the dashboard is missing from this installation; install moesim again")
