"""The tiny model on the CPU, from the same start on the same rows: tuyi, the usual script, LLaMA-Factory.

Order, optimizer and schedule are the same too.
``python benchmarks/train.py --tiny`` runs it on a few rows of the built-in sample, whose pictures the budget leaves as
they are. What is compared is the loss of each step, which must agree, and the time of a step with its rows read.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

from machine import machine
from models import make_model
from step_record import Trained
from trainers import Interpreter, Job, Recipe, launch

__all__ = ["export_in_order", "loss_gap", "run"]

BATCH, WARMUP, LR, THREADS = 8, 2, 1e-3, 2
MAX_PIXELS, MAX_TOKENS = 1_003_520, 8192


def run(args: argparse.Namespace, work: Path) -> None:
    """Train on each side, print losses and times."""
    from tuyi.data import read
    from tuyi.data.sample import write_sample
    from tuyi.model.quiet import no_progress_bars

    facts = machine("cpu")
    print("; ".join(f"{name} {value}" for name, value in facts.items()) + f"; {THREADS} threads", flush=True)
    work = work / f"tiny-{time.time_ns()}"
    sample = write_sample(work / "sample", seed=args.seed, train_rows=max(48, args.steps * BATCH), test_rows=48)
    with no_progress_bars():
        start = make_model(work / "start", "tiny", [row.text + (row.label or "") for row in read(sample.train)])
    settings = (
        f"max_steps={args.steps}", f"batch_rows={BATCH}", f"lr={LR}", f"warmup={WARMUP / args.steps}",
        "epochs=1", "precision=fp32", "freeze={vision: false, projector: false}", "tensorboard=false", *args.set,
    )  # fmt: skip
    recipe = Recipe(batch=BATCH, lr=LR, warmup_steps=WARMUP, freeze=False, precision="fp32", answer_only=True)

    def job(side: str, data: Path, steps: tuple[list[str], ...] = ()) -> Job:
        return Job(
            model=str(start), data=str(data), out=str(work / side), task="www2025", max_pixels=MAX_PIXELS,
            max_tokens=MAX_TOKENS, device="cpu", settings=settings, recipe=recipe, steps=steps, threads=THREADS,
            save="none",
        )  # fmt: skip

    done = {"tuyi": launch("tuyi", job("tuyi", sample.train))}
    # the order of its rows is tuyi's own; the others follow it
    steps = tuple(ids for _, ids in done["tuyi"].finished)
    if steps:
        done["script"] = launch("script", job("script", sample.train, steps))
    if steps and (args.llamafactory_python or args.llamafactory_path):
        export = export_in_order(sample.train, [id_ for ids in steps for id_ in ids], work / "export")
        interpreter = Interpreter(args.llamafactory_python or sys.executable, args.llamafactory_path)
        done["llamafactory"] = launch("llamafactory", job("llamafactory", export, steps), interpreter)
    show(done)
    if args.out is not None:
        table = {"machine": facts, "runs": {name: asdict(one) for name, one in done.items()}}
        args.out.write_text(json.dumps(table, ensure_ascii=False, indent=1), encoding="utf-8")


def export_in_order(data: Path, ids: list[str], folder: Path) -> Path:
    """A ShareGPT export of these rows in this order, named ``rows``; returns its folder."""
    from tuyi.data import convert

    items = {str(item["id"]): item for item in json.loads(data.read_text(encoding="utf-8"))}
    ordered = data.with_name("ordered.json")
    ordered.write_text(json.dumps([items[id_] for id_ in ids], ensure_ascii=False), encoding="utf-8")
    convert(ordered, folder / "rows.json", "sharegpt")
    return folder


def loss_gap(one: Trained, other: Trained) -> float:
    """The largest difference between the losses of two runs, which must have had the same learning rates.

    Raises:
        ValueError: The runs differ in steps or learning rates.
    """
    if len(one.loss) != len(other.loss):
        raise ValueError(f"expected runs of equal length, found {len(one.loss)} and {len(other.loss)} steps")
    apart = max(abs(a - b) for a, b in zip(one.lr, other.lr, strict=True))
    if apart > 1e-6 * max(one.lr):
        raise ValueError(f"expected equal learning rates, found them {apart:.1e} apart")
    return max(abs(a - b) for a, b in zip(one.loss, other.loss))


def show(done: Mapping[str, Trained]) -> None:
    """Losses side by side, times of a step, ratios."""
    for name, one in done.items():
        if one.skipped:
            print(f"{name} not run: {one.skipped}")
    ran = {name: one for name, one in done.items() if not one.skipped}
    if "tuyi" not in ran:
        sys.exit(1)
    print("\nloss of a step | " + " | ".join(ran))
    for step, losses in enumerate(zip(*(one.loss for one in ran.values()), strict=True), 1):
        print(f"{step} | " + " | ".join(f"{loss:.6f}" for loss in losses))
    print(
        "\n | s a step, first left out: median (least–most) | tuyi is so many times as fast | largest loss difference"
    )
    own = statistics.median(_seconds(ran["tuyi"]))
    for name, one in ran.items():
        seconds = _seconds(one)
        middle = statistics.median(seconds)
        told = "" if name == "tuyi" else f" | {middle / own:.2f} | {loss_gap(ran['tuyi'], one):.1e}"
        print(f"{name} | {middle:.3f} ({min(seconds):.3f}–{max(seconds):.3f}){told}")
    sys.stdout.flush()


def _seconds(done: Trained) -> list[float]:
    ends = [at for at, _ in done.finished]
    return [at - before for before, at in pairwise(ends)]
