"""``tuyi demo``: the whole way on a built-in sample."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["demo"]


def demo(
    out: Annotated[Path, typer.Option(help="New or empty folder for everything that it writes.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Of the sample, the weights and the row order.")] = 0,
) -> None:
    """Train, predict and judge a model on a built-in sample: five minutes on two CPU cores, no download."""
    from rich.console import Console

    from tuyi.cli.evaluate import score_table
    from tuyi.cli.progress import bar
    from tuyi.demo.run import demo as run_demo

    console = Console(highlight=False)
    with bar(console, "predicting") as progress:
        judged = run_demo(out, seed=seed, console=console, progress=progress)
    console.print(score_table(judged))
    for name, task in judged.tasks.items():
        beside = ", ".join(f"{key} {score:.3f}" for key, score in task.baselines.items())
        console.print(f"{name}: weighted F1 {task.scores.metrics['weighted_f1'].value:.3f}; {beside}", markup=False)
    console.print(f"Report: {judged.report}", soft_wrap=True, markup=False)
