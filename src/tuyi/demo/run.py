"""`tuyi demo`: the main job from nothing, without a download, on two CPU cores."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuyi.errors import OutputError, TrainingError

if TYPE_CHECKING:
    from tuyi.evaluate.judge import Evaluation

__all__ = ["BUDGET", "demo", "settings"]

BUDGET = {"max_pixels": 15_680, "max_tokens": 512}
"""Pictures of at most 20 visual tokens: what two CPU cores can learn from in minutes."""


def settings(seed: int) -> Any:
    """How the demo trains."""
    from tuyi.train.settings import TrainSettings

    return TrainSettings(epochs=6, batch_rows=16, lr=1e-3, warmup=0.05, weight_decay=0.01, pack_tokens=8192, seed=seed)


def demo(
    out: Path,
    *,
    seed: int = 0,
    console: Any = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Write the sample, check it, train the built-in model, predict the held-out rows, judge them.

    Writes ``data/``, ``model/``, ``predictions.jsonl``, ``submission.csv``, ``report.html``, ``metrics.json`` and
    ``loss.png`` into ``out``.

    Args:
        out: A new or empty folder.
        seed: Of the sample, the weights and the row order.
        console: A rich console to tell what happens; none to stay silent.
        progress: Called during prediction with rows done and rows in all.

    Raises:
        OutputError: ``out`` has something in it.
        TrainingError: The sample failed its own checks.
    """
    from rich.console import Console

    from tuyi.data import check, read
    from tuyi.data.sample import leak_check, write_sample
    from tuyi.demo.baselines import one_sided_scores
    from tuyi.evaluate.judge import EvaluateSettings, evaluate
    from tuyi.predict.run import predict
    from tuyi.predict.submission import write_submission
    from tuyi.task import load_tasks
    from tuyi.train.run import train

    console = console or Console(quiet=True)
    started = time.perf_counter()

    def tell(step: str) -> None:
        console.print(f"[bold]{step}[/bold]  [dim]{time.perf_counter() - started:.0f} s[/dim]")

    if out.exists() and any(out.iterdir()):
        raise OutputError(f"{out} has something in it; expected a new or empty folder: choose another --out")
    tell("1/5 writing the sample")
    sample = write_sample(out / "data", seed=seed)
    tasks = load_tasks("www2025")
    tell(f"2/5 checking {sample.train_rows} training and {sample.test_rows} held-out rows, {sample.pictures} pictures")
    checked, leaks = check(sample.train, tasks, against=[sample.test]), leak_check(out / "data")
    console.print(f"  {leaks}", highlight=False)
    if not (checked.ok and leaks.clean):
        raise TrainingError(f"the sample failed its own checks; run `tuyi check {sample.train} --task www2025`")
    tell("3/5 training the built-in model from scratch")
    train(sample.train, out / "model", task=tasks, settings=settings(seed), budget=BUDGET, console=console)
    (out / "model" / "loss.png").rename(out / "loss.png")
    tell("4/5 predicting the held-out rows")
    done = predict(out / "model", sample.test, out / "predictions.jsonl", progress=progress)
    write_submission(out / "submission.csv", sample.test, done.out, done.tasks)
    tell("5/5 judging")
    scores = one_sided_scores(list(read(sample.train)), list(read(sample.labelled)), tasks)
    judged = evaluate(
        done.out,
        sample.labelled,
        out,
        baselines=scores,
        keep_calibration=True,
        settings=EvaluateSettings(loss=out / "loss.png"),
    )
    tell("done")
    return judged
