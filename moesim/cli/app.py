"""The typer application and its verbs."""

from __future__ import annotations

from typing import Annotated

import typer

import moesim
from moesim.cli import (
    advise,
    bench,
    calibrate,
    capture,
    dashboard,
    demo,
    files,
    migrate,
    models,
    phases,
    plans,
    profile,
    rebalance,
    serve,
    survive,
    sweep,
    validate,
)

app = typer.Typer(
    name="moesim",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"moesim {moesim.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Simulate Mixture-of-Experts expert parallelism and place the experts.

    Where should every expert live, how many copies should it have, and what would that buy on this cluster?
    Start with [bold]moesim demo[/bold].
    """


_SEE, _DECIDE, _MODEL = "Look", "Plan and judge", "Bundled model"

app.command("demo", rich_help_panel=_SEE)(demo.demo)
app.command("inspect", rich_help_panel=_SEE)(files.inspect)
app.command("import", rich_help_panel=_SEE)(files.import_)
app.command("solve", rich_help_panel=_DECIDE)(plans.solve)
app.command("simulate", rich_help_panel=_DECIDE)(plans.simulate)
app.command("compare", rich_help_panel=_DECIDE)(plans.compare)
app.command("serve", rich_help_panel=_DECIDE)(serve.serve)
app.command("rebalance", rich_help_panel=_DECIDE)(rebalance.rebalance)
app.command("sweep", rich_help_panel=_DECIDE)(sweep.sweep)
app.command("advise", rich_help_panel=_DECIDE)(advise.advise)
app.command("phases", rich_help_panel=_DECIDE)(phases.phases)
app.command("survive", rich_help_panel=_DECIDE)(survive.survive)
app.command("migrate", rich_help_panel=_DECIDE)(migrate.migrate)
app.command("recover", rich_help_panel=_DECIDE)(migrate.recover)
app.command("export", rich_help_panel=_DECIDE)(files.export)
app.add_typer(bench.bench, name="bench", rich_help_panel=_DECIDE)
app.command("validate", rich_help_panel=_SEE)(validate.validate)
app.command("calibrate", rich_help_panel=_SEE)(calibrate.calibrate)
app.command("profile", rich_help_panel=_MODEL)(profile.profile)
app.command("app", rich_help_panel=_SEE)(dashboard.app)
app.command("train", rich_help_panel=_MODEL)(models.train)
app.add_typer(capture.capture, name="capture", rich_help_panel=_SEE)
