"""``tuyi tune``: search for the settings to train with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuyi.cli.options import BadRow, OnBadRowOption, Read, Set, overrides

if TYPE_CHECKING:
    from rich.console import Console

    from tuyi.train.trials import Trial

__all__ = ["tune"]


def tune(
    data: Annotated[Path | None, typer.Argument(help="Labelled rows: a data file, or a folder per label.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the search.")] = None,
    valid: Annotated[Path | None, typer.Option(help="Labelled rows that decide which settings are best.")] = None,
    task: Annotated[str | None, typer.Option(help="Built-in task or YAML file; default: the model's own.")] = None,
    model: Annotated[str | None, typer.Option(help="builtin:tiny (the default), a folder, or a hub id.")] = None,
    trials: Annotated[int | None, typer.Option(help="Training runs in all.  [default: 12]")] = None,
    try_: Annotated[
        list[str] | None,
        typer.Option(
            "--try",
            metavar="KEY=WHAT",
            help="Search this setting: train.lr=1e-5..1e-4,log, train.epochs=1..4, train.lora.rank=8,16,32. "
            "Default: learning rate, epochs and pixels.",
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML run file as for train, with tune, too.")] = None,
    set_: Set = None,
    read: Read = None,
    on_bad_row: OnBadRowOption = BadRow.stop,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the search in OUT.")] = False,
) -> None:
    """Search for the settings to train with, by weighted F1 on validation rows; needs the extra "tune"."""
    from rich.console import Console

    from tuyi.config import load_settings
    from tuyi.train.process import first_process
    from tuyi.train.trials import read_trials
    from tuyi.train.tune import TuneRun
    from tuyi.train.tune import tune as search

    given = {"data": data, "out": out, "task": task, "model": model, "valid": valid}
    more = [f"tune.space.{item}" for item in try_ or ()] + ([f"tune.trials={trials}"] if trials is not None else [])
    run = load_settings(TuneRun, config, [*overrides(set_, read), *more], **given)
    console = Console(highlight=False, quiet=not first_process())
    try:
        done = search(
            run.data,
            run.out,
            task=run.task,
            model=run.model,
            valid=run.valid,
            search=run.tune,
            settings=run.train,
            budget=run.budget,
            options=run.read,
            on_bad_row=on_bad_row.value,
            resume=resume,
            console=console,
        )
    except KeyboardInterrupt:
        _show(console, read_trials(run.out))
        console.print("go on with the same command and --resume", markup=False)
        raise
    _show(console, list(done.trials))
    console.print(
        f"best model: {run.out}/best   its settings: {run.out}/best.yaml\n"
        f"next: tuyi predict {run.out}/best DATA --out pred.jsonl, with rows that the search has not seen",
        markup=False,
        soft_wrap=True,
    )


def _show(console: Console, trials: list[Trial]) -> None:
    """A table, best first."""
    from rich.table import Table

    names = list(trials[0].values) if trials else []
    table = Table("trial", "weighted F1", *names, "steps", "seconds")
    for trial in sorted(trials, key=lambda trial: -1.0 if trial.score is None else trial.score, reverse=True):
        score = trial.state if trial.score is None else f"{trial.score:.4f}"
        values = (f"{value:g}" if isinstance(value, float) else str(value) for value in trial.values.values())
        counts = ("" if count is None else f"{count:.0f}" for count in (trial.steps, trial.seconds))
        table.add_row(str(trial.number), score, *values, *counts)
    console.print(table)
