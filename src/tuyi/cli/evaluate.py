"""`tuyi evaluate`: judge predictions against labelled rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuyi.cli.options import Read

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

    from tuyi.evaluate.bootstrap import Interval
    from tuyi.evaluate.judge import Evaluation

__all__ = ["evaluate", "score_table"]


def evaluate(
    predictions: Annotated[Path, typer.Argument(help="JSON lines that `tuyi predict` wrote.")],
    data: Annotated[Path, typer.Argument(help="The rows that were predicted, with their labels.")],
    out: Annotated[Path, typer.Option(help="Folder for report.html and metrics.json.")],
    task: Annotated[
        str | None,
        typer.Option(help="Built-in task or YAML file; default: the one that was predicted."),
    ] = None,
    against: Annotated[Path | None, typer.Option(help="Another predictions file on the same rows, to compare.")] = None,
    keep_calibration: Annotated[
        bool, typer.Option(help="Write the fitted temperatures into the model folder; later predictions use them.")
    ] = False,
    read: Read = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting, such as resamples=5000.")
    ] = None,
) -> None:
    """Judge predictions: scores with intervals, calibration, mistakes, one HTML report."""
    from rich.console import Console

    from tuyi.config import load_settings
    from tuyi.evaluate.judge import EvaluateSettings
    from tuyi.evaluate.judge import evaluate as judge
    from tuyi.task import load_tasks

    found = judge(
        predictions,
        data,
        out,
        tasks=load_tasks(task) if task else None,
        compare_with=against,
        keep_calibration=keep_calibration,
        settings=load_settings(EvaluateSettings, None, [*(f"read.{item}" for item in read or ()), *(set_ or ())]),
    )
    console = Console(highlight=False)
    console.print(score_table(found))
    if found.comparison:
        from tuyi.evaluate.wording import comparison_sentence

        console.print(comparison_sentence(found.comparison), soft_wrap=True, markup=False)
    for name, kept in found.kept.items():
        console.print(
            f"{name}: the model folder now keeps temperature {kept['temperature']:.3f}", soft_wrap=True, markup=False
        )
    console.print(f"Report: {found.report}", soft_wrap=True, markup=False)


def score_table(found: Evaluation) -> Table:
    """Scores of each task with their intervals, as a rich table."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for name in ("task", "rows", "weighted F1 (interval)", "accuracy", "macro F1", "ECE"):
        table.add_column(name, justify="left" if name == "task" else "right", no_wrap=True)

    def add(name: str, rows: int, scores: Mapping[str, Interval], ece: str) -> None:
        f1 = scores["weighted_f1"]
        others = (f"{scores[key].value:.3f}" for key in ("accuracy", "macro_f1"))
        table.add_row(name, str(rows), f"{f1.value:.3f} ({f1.low:.3f}–{f1.high:.3f})", *others, ece)

    for task in found.tasks.values():
        ece = f"{task.calibration.before.ece:.3f}" if task.calibration else "–"
        add(task.name, task.scores.rows, task.scores.metrics, ece)
    if len(found.tasks) > 1:
        add("overall", sum(task.scores.rows for task in found.tasks.values()), found.overall, "")
    return table
