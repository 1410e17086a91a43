"""``tuyi train``: fine-tune a model on labelled rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuyi.cli.options import BadRow, OnBadRowOption, Read, Set, overrides

__all__ = ["train"]


def train(
    data: Annotated[Path | None, typer.Argument(help="Labelled rows: a data file, or a folder per label.")] = None,
    out: Annotated[Path | None, typer.Option(help="Model folder to write.")] = None,
    task: Annotated[str | None, typer.Option(help="Built-in task or YAML file; default: the model's own.")] = None,
    model: Annotated[str | None, typer.Option(help="builtin:tiny (the default), a folder, or a hub id.")] = None,
    valid: Annotated[Path | None, typer.Option(help="Labelled rows to score during training.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML run file with data, out, task, model, valid, train, …")
    ] = None,
    set_: Set = None,
    read: Read = None,
    on_bad_row: OnBadRowOption = BadRow.stop,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest whole checkpoint in OUT.")] = False,
) -> None:
    """Fine-tune a model on labelled rows; the folder it writes opens in plain transformers too."""
    from rich.console import Console

    from tuyi.config import load_settings
    from tuyi.train.process import first_process
    from tuyi.train.run import train as train_model
    from tuyi.train.settings import TrainRun

    given = {"data": data, "out": out, "task": task, "model": model, "valid": valid}
    run = load_settings(TrainRun, config, overrides(set_, read), **given)
    console = Console(highlight=False, quiet=not first_process())
    done = train_model(
        run.data,
        run.out,
        task=run.task,
        model=run.model,
        valid=run.valid,
        settings=run.train,
        budget=run.budget,
        options=run.read,
        on_bad_row=on_bad_row.value,
        resume=resume,
        console=console,
    )
    for problem in done.skipped:
        console.print(f"skipped {problem}", style="yellow", markup=False)
    rate = f"{done.rows_done / done.seconds:.1f} rows/s" if done.seconds else "nothing left to do"
    console.print(f"{done.steps} steps in {done.seconds:.0f} s ({rate}), loss {done.loss:.4f}", markup=False)
    for name, score in done.scores.items():
        console.print(f"{name} {score:.4f}", markup=False)
    console.print(
        f"model: {done.out}   next: tuyi predict {done.out} DATA --out pred.jsonl", markup=False, soft_wrap=True
    )
