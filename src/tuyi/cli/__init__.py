"""The command line: one thin file a command, each calling the function of the same name in a room."""

from __future__ import annotations

import sys

import typer

from tuyi.cli.audit import audit
from tuyi.cli.chat import chat
from tuyi.cli.check import check
from tuyi.cli.compare_engines import compare_engines
from tuyi.cli.convert import convert
from tuyi.cli.demo import demo
from tuyi.cli.describe import describe
from tuyi.cli.distill import distill
from tuyi.cli.doctor import doctor
from tuyi.cli.ensemble import ensemble
from tuyi.cli.evaluate import evaluate
from tuyi.cli.export import export
from tuyi.cli.label import label
from tuyi.cli.predict import predict
from tuyi.cli.rationalize import rationalize
from tuyi.cli.serve import serve
from tuyi.cli.split import split
from tuyi.cli.task import task_app
from tuyi.cli.train import train
from tuyi.cli.tune import tune
from tuyi.errors import TuyiError

__all__ = ["app", "main"]

app = typer.Typer(
    name="tuyi",
    help="From labelled pictures, video and dialogue to a fine-tuned, measured model that picks the right label.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (
    demo,
    check,
    audit,
    convert,
    split,
    train,
    tune,
    predict,
    chat,
    describe,
    compare_engines,
    evaluate,
    ensemble,
    export,
    serve,
    label,
    distill,
    rationalize,
    doctor,
):
    app.command()(command)
app.add_typer(task_app, name="task")


def _version(show: bool) -> None:
    if show:
        from importlib.metadata import version

        typer.echo(f"tuyi {version('tuyi')}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    pass


def main() -> None:
    """Run the command line; an error that a user can mend is one message on stderr and exit code 1."""
    try:
        app()
    except TuyiError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped; what was written so far is whole", file=sys.stderr)
        sys.exit(130)
