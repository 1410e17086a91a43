"""``tuyi distill``: rounds of label, filter, train and evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuyi.cli.options import BadRow, OnBadRowOption, Read, Set, overrides

__all__ = ["distill"]


def distill(
    labelled: Annotated[Path | None, typer.Argument(help="Labelled rows.")] = None,
    unlabelled: Annotated[Path | None, typer.Option(help="Rows without labels.")] = None,
    valid: Annotated[Path | None, typer.Option(help="Labelled rows that decide which round is the best.")] = None,
    out: Annotated[Path | None, typer.Option(help="Model folder to write; the rounds lie in it.")] = None,
    task: Annotated[str | None, typer.Option(help="Built-in task or YAML file; default: the model's own.")] = None,
    model: Annotated[
        str | None, typer.Option(help="The student: builtin:tiny (the default), a folder, a hub id.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Who labels first; default: the student of the labelled rows.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="Most rounds.  [default: 3]")] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML run file with labelled, unlabelled, valid, out, train, select, …")
    ] = None,
    set_: Set = None,
    read: Read = None,
    on_bad_row: OnBadRowOption = BadRow.stop,
) -> None:
    """Let a teacher label rows, train on them, and repeat; started again, it goes on where it was stopped."""
    from rich.console import Console

    from tuyi.cli.progress import bar
    from tuyi.cli.tables import print_tables
    from tuyi.config import load_settings
    from tuyi.distill.rounds import DistillRun
    from tuyi.distill.rounds import distill as distill_rows

    given = {
        "labelled": labelled, "unlabelled": unlabelled, "valid": valid, "out": out, "task": task, "model": model,
        "teacher": teacher,
    }  # fmt: skip
    limit = [f"distill.rounds={rounds}"] if rounds is not None else []
    run = load_settings(DistillRun, config, [*overrides(set_, read), *limit], **given)
    console = Console(highlight=False)
    with bar(console, "predicting") as progress:
        done = distill_rows(
            run.labelled,
            run.unlabelled,
            run.valid,
            run.out,
            task=run.task,
            model=run.model,
            teacher=run.teacher,
            settings=run,
            on_bad_row=on_bad_row.value,
            progress=progress,
            console=console,
        )
    print_tables(console, done.tables)
    console.print(
        f"model: {done.out}, from round {done.best.number}\nReport: {done.report}", markup=False, soft_wrap=True
    )
