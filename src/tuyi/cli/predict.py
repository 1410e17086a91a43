"""``tuyi predict``: the label of every row, with the probability of each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuyi.cli.options import BadRow, Engine, Form, FormOption, OnBadRowOption, Read, Set, overrides

__all__ = ["predict"]


def predict(
    model: Annotated[str, typer.Argument(help="A model folder, hub id or built-in name.")],
    data: Annotated[Path, typer.Argument(help="Rows to label: a data file, or a folder.")],
    out: Annotated[Path, typer.Option(help="Predictions to write, one JSON object a line.")],
    engine: Annotated[
        Engine | None, typer.Option(help="Who runs the model; local, the default, uses all GPUs of this machine.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="Built-in task or YAML file; default: the model's own.")] = None,
    submission: Annotated[Path | None, typer.Option(help="Also write the challenge's CSV.")] = None,
    form: FormOption = Form.full,
    set_: Set = None,
    read: Read = None,
    on_bad_row: OnBadRowOption = BadRow.stop,
) -> None:
    """Label every row by exact scoring of the task's labels, with a reason or free text where the task asks for it.

    Started again, it goes on where it was stopped.
    """
    from rich.console import Console

    from tuyi.cli.console import teller
    from tuyi.cli.progress import bar
    from tuyi.config import load_settings
    from tuyi.predict.run import PredictRun
    from tuyi.predict.run import predict as predict_rows
    from tuyi.predict.submission import write_submission

    run = load_settings(PredictRun, None, overrides(set_, read, engine))
    console = Console(highlight=False)
    with bar(console, "predicting") as progress:
        done = predict_rows(
            model,
            data,
            out,
            task=task,
            settings=run.predict,
            budget=run.budget,
            options=run.read,
            on_bad_row=on_bad_row.value,
            progress=progress,
            tell=teller(console),
        )
    for problem in done.skipped:
        console.print(f"skipped {problem}", style="yellow", markup=False, soft_wrap=True)
    made = done.rows - done.resumed
    rate = f" in {done.seconds:.1f} s ({made / done.seconds:.1f} rows/s)" if made else ""
    console.print(
        f"{done.out}: {done.rows} predictions{f', {done.resumed} of them from an earlier run' if done.resumed else ''}"
        f"{rate}, {done.shortened} rows shortened to fit the budget",
        markup=False,
        soft_wrap=True,
    )
    if done.cost is not None:
        console.print(
            f"at most {_counted(done.cost.calls, 'call', run.predict.max_calls)} and "
            f"{_counted(done.cost.output_tokens, 'output token', run.predict.max_output_tokens)} for a row",
            markup=False,
            soft_wrap=True,
        )
    if submission is not None:
        rows = write_submission(submission, data, out, done.tasks, form.value, run.read)
        console.print(f"{submission}: {rows} rows, validated", markup=False, soft_wrap=True)


def _counted(most: int, what: str, limit: int | None) -> str:
    return f"{most} {what}{'' if most == 1 else 's'}" + (f" ({limit} allowed)" if limit is not None else "")
