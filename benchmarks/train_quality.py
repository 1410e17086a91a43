"""What is learned: loss curves and held-out accuracy of the tiny model on scikit-learn's digits.

``python benchmarks/train.py --quality --out FOLDER`` trains from the same start weights, on the same rows in the same
order, with the same optimizer and schedule: tuyi in each precision and the usual script in float32. It prints how far
each curve is from the script's at most, and the accuracy of each, and draws the curves into ``FOLDER/loss.png``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from machine import begin
from models import make_model
from step_record import Trained
from train_tiny import loss_gap
from trainers import Job, Recipe, launch

__all__ = ["run"]

ROWS_A_STEP, LR, WARMUP = 32, 2e-3, 0.1
MAX_PIXELS, MAX_TOKENS = 3136, 64
DIGITS = Path(__file__).parents[1] / "examples" / "digits"


def run(args: argparse.Namespace, work: Path) -> None:
    """Train with every seed, print the table, draw the curves."""
    from tuyi.data import read
    from tuyi.model.quiet import no_progress_bars

    device, facts = begin(args.device)
    sys.path.append(str(DIGITS))
    from prepare import write

    work, task = work / f"quality-{time.time_ns()}", DIGITS / "task.yaml"
    write(work / "digits")
    texts = [*(row.label or "" for row in read(work / "digits" / "train")), task.read_text(encoding="utf-8")]
    done: dict[str, list[Trained]] = {}
    for seed in range(args.seeds):
        with no_progress_bars():
            start = make_model(work / f"start{seed}", "tiny", texts, seed=seed)
        common: dict[str, Any] = {
            "model": str(start), "data": str(work / "digits" / "train"), "task": str(task), "max_pixels": MAX_PIXELS,
            "max_tokens": MAX_TOKENS, "device": device, "held_out": str(work / "digits" / "test"),
        }  # fmt: skip
        steps: tuple[list[str], ...] = ()
        for precision in args.precisions.split(","):
            settings = (
                f"epochs={args.epochs:g}", f"batch_rows={ROWS_A_STEP}", f"lr={LR}", f"warmup={WARMUP}", f"seed={seed}",
                f"precision={precision}", "freeze={vision: false, projector: false}", "tensorboard=false", *args.set,
            )  # fmt: skip
            one = launch("tuyi", Job(out=str(work / f"{precision}{seed}"), settings=settings, **common))
            done.setdefault(f"tuyi {precision}", []).append(one)
            steps = steps or tuple(ids for _, ids in one.finished)
        if steps:
            recipe = Recipe(lr=LR, warmup_steps=round(WARMUP * len(steps)), freeze=False, precision="fp32")
            one = launch("script", Job(out=str(work / f"script{seed}"), recipe=recipe, steps=steps, **common))
            done.setdefault("script fp32", []).append(one)
    show(done)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        table = {"machine": facts, "runs": {name: [asdict(one) for one in many] for name, many in done.items()}}
        (args.out / "quality.json").write_text(json.dumps(table, indent=1), encoding="utf-8")
        draw({name: many for name, many in done.items() if not any(one.skipped for one in many)}, args.out / "loss.png")
        print(f"curves: {args.out / 'loss.png'}")


def show(done: Mapping[str, Sequence[Trained]]) -> None:
    """Accuracy, losses, and how far each curve is from the script's."""
    print("\n | accuracy of each seed | mean | loss of the last tenth | largest loss difference to the script")
    for name, many in done.items():
        if skipped := [one.skipped for one in many if one.skipped]:
            print(f"{name} | not run: {skipped[0]}")
            continue
        scores = [one.scores["accuracy"] for one in many]
        last = [statistics.mean(one.loss[-max(1, len(one.loss) // 10) :]) for one in many]
        others = () if name == "script fp32" else done.get("script fp32", ())
        gaps = [loss_gap(one, other) for one, other in zip(many, others) if not other.skipped]
        print(
            f"{name} | {', '.join(f'{score:.4f}' for score in scores)} | {statistics.mean(scores):.4f} | "
            f"{', '.join(f'{loss:.4f}' for loss in last)} | {', '.join(f'{gap:.1e}' for gap in gaps)}"
        )


def draw(done: Mapping[str, Sequence[Trained]], out: Path) -> None:
    """The first seed's curves above, their distance from the script's below."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 7), dpi=120, sharex=True, layout="constrained")
    base = done.get("script fp32")
    for name, many in done.items():
        losses = np.asarray(many[0].loss)
        line = "k--" if name.startswith("script") else "-"
        above.plot(np.arange(1, len(losses) + 1), losses, line, linewidth=1, label=name)
        if base and not name.startswith("script"):
            apart = np.abs(losses - np.asarray(base[0].loss))
            below.semilogy(np.arange(1, len(losses) + 1), np.maximum(apart, 1e-9), linewidth=1, label=name)
    above.set(ylabel="loss per answer token", yscale="log")
    below.set(xlabel="optimizer step", ylabel="distance from the script's loss")
    for axes in (above, below):
        axes.grid(alpha=0.25)
        axes.legend()
    figure.savefig(out)
    plt.close(figure)
