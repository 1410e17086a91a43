"""``tuyi task``: show, check and begin task files."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["task_app"]

task_app = typer.Typer(help="Show, check or begin a task file.", no_args_is_help=True, rich_markup_mode=None)


class PromptLayout(StrEnum):
    """What the prompt of a new task file puts first."""

    content = "content"
    prefix = "prefix"


@task_app.command()
def show(task: Annotated[str, typer.Argument(help="Built-in task or YAML file.")] = "") -> None:
    """Show a task as the model sees it: labels, prompt, answer, budgets. Without a name: the built-in ones."""
    from tuyi.task import builtin_names, load_tasks

    if not task:
        for name in builtin_names():
            tasks = load_tasks(name)
            typer.echo(f"{name}: {'; '.join(f'{one.name} ({one.about})' for one in tasks)}")
        return
    for one in load_tasks(task):
        typer.echo(f"== {one.name}: {one.about}")
        for label in one.labels.labels if one.labels else ():
            typer.echo(f"  {label.name}" + (f" = {label.definition}" if label.definition else ""))
        typer.echo("-- prompt")
        typer.echo("…".join(one.wording))
        typer.echo("-- answer")
        example = one.labels.names[0] if one.labels else "(the row's own answer)"
        typer.echo(one.answer.render(example, "(reason)"))
        typer.echo("-- budget")
        for name, value in one.budget.model_dump().items():
            typer.echo(f"  {name}: {value}")


@task_app.command()
def check(
    task: Annotated[str, typer.Argument(help="Built-in task or YAML file.")],
    data: Annotated[Path | None, typer.Argument(help="Rows to recognise with it.")] = None,
) -> None:
    """Check a task file, and with DATA how many rows each task recognises."""
    from collections import Counter

    from tuyi.data import read
    from tuyi.task import load_tasks

    tasks = load_tasks(task)
    labels = ", ".join(f"{one.name} ({len(one.labels) if one.labels else 'no'} labels)" for one in tasks)
    typer.echo(f"{task}: {len(tasks.tasks)} task{'s' if len(tasks.tasks) > 1 else ''}, sound: {labels}")
    if data is not None:
        for name, rows in sorted(Counter(tasks.of(row).name for row in read(data)).items()):
            typer.echo(f"  {name}: {rows} rows of {data}")


@task_app.command()
def new(
    file: Annotated[Path, typer.Argument(help="YAML file to write.")],
    data: Annotated[Path | None, typer.Option(help="Labelled rows; their labels are listed in the file.")] = None,
    layout: Annotated[
        PromptLayout, typer.Option(help="What the prompt puts first: the row, or a fixed prefix that rows share.")
    ] = PromptLayout.content,
) -> None:
    """Write a task file to start from."""
    from tuyi.task.new import write_task

    labels = write_task(file, data, layout.value)
    typer.echo(f"{file}: {labels} labels; edit it, then: tuyi task check {file}")
