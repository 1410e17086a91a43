"""``tuyi check``: what is wrong with the data, before anything costs money."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuyi.cli.options import Read

if TYPE_CHECKING:
    from collections.abc import Callable

    from tuyi.data.example import Example
    from tuyi.task import TaskSet

__all__ = ["check"]


def check(
    data: Annotated[Path, typer.Argument(help="Data file, or a folder per label.")],
    task: Annotated[str | None, typer.Option(help="Built-in task or YAML file; without it labels are counted.")] = None,
    against: Annotated[
        list[Path] | None, typer.Option(help="File that must share no picture or text with DATA; may be repeated.")
    ] = None,
    read: Read = None,
    model: Annotated[
        str | None, typer.Option(help="Count tokens as this model does; without it text is estimated.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Problems of each kind to print.", min=0)] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")] = False,
) -> None:
    """Check rows, labels, pictures, videos, duplicates and leaks. Exits with 1 on errors."""
    import json

    from rich.console import Console

    from tuyi.config import load_settings
    from tuyi.data import ReadOptions
    from tuyi.data import check as check_data
    from tuyi.task import load_tasks

    tasks = load_tasks(task) if task is not None else None
    report = check_data(
        data,
        tasks,
        against=against or (),
        options=load_settings(ReadOptions, None, read),
        length=_counter(tasks, model),
    )
    if as_json:
        typer.echo(json.dumps(report.to_dict(), ensure_ascii=False, indent=2))
    else:
        console = Console(highlight=False)
        for line in report.lines(limit):
            style = "red" if line.startswith("error:") else "yellow" if line.startswith("warning:") else None
            console.print(line, style=style, markup=False, soft_wrap=True)
    if not report.ok:
        raise typer.Exit(1)


def _counter(tasks: TaskSet | None, model: str | None) -> Callable[[Example], int] | None:
    """Counts the tokens of a row; nothing to count without a task."""
    if tasks is None:
        return None
    if model is None:
        from tuyi.encode.estimate import estimate_tokens

        return lambda example: estimate_tokens(example, tasks)
    from tuyi.encode.encoder import Encoder
    from tuyi.model.load import load_frontend

    frontend = load_frontend(model)
    return Encoder(frontend.tokenizer, frontend.spec, tasks).unshortened
