"""Reasons beside labels: does a student learn more from rows that also say why?

    python benchmarks/distillation_reasons.py --work reasons-work --out reasons.json

Handwritten digits, dealt as :mod:`distillation` does. The reason of a row describes its picture, written by a rule
that never sees the label: how many closed loops there are and where, and how the ink is spread. Each arm trains the
same tiny student from the same weights with the same settings for the same number of steps, on 100 rows or on all:

- label: the label alone
- beside: the label, and the reason in a row of its own (``train.reasons.weight``); asked for the label alone
- inside: reason, then label, in one JSON answer, as the reference recipe does; prediction writes the reason first
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from scipy import ndimage

from cells import Cells, interval
from distillation import Deal, Lesson, digits, write_rows
from models import make_model
from tuyi.data import Example, read
from tuyi.evaluate.judge import EvaluateSettings, evaluate
from tuyi.predict.run import predict
from tuyi.task.catalog import parse_tasks
from tuyi.vision.image import load_rgb

ARMS = ("label", "beside", "inside")
SETS = ("labelled", "all")
_THIRDS = ("top", "middle", "bottom")


def reason(row: Example) -> str:
    """What the picture of a row looks like."""
    (image,) = row.images
    grey = np.asarray(load_rgb(image), float).mean(2)
    ink = abs(grey - grey[0, 0])
    dark = ink > 0.4 * ink.max()
    paper, count = ndimage.label(~dark)
    edge = {*paper[0], *paper[-1], *paper[:, 0], *paper[:, -1]}
    loops = [n for n in range(1, count + 1) if n not in edge and (paper == n).sum() > 8]
    at = [_THIRDS[min(2, int(3 * ndimage.center_of_mass(paper == n)[0] / len(ink)))] for n in loops]
    thirds = [part.sum() / ink.sum() for part in np.array_split(ink, 3)]
    left = np.array_split(ink, 2, axis=1)[0].sum() / ink.sum()
    where = f" at the {' and '.join(sorted(at))}" if at else ""
    side = "left" if left > 0.53 else "right" if left < 0.47 else "both sides"
    return f"{len(loops)} loops{where}, most ink at the {_THIRDS[int(np.argmax(thirds))]}, {side}"


class ReasonDeal(Deal):
    """A deal whose rows bring reasons; all arms begin with weights whose tokenizer has seen them."""

    @cached_property
    def start(self) -> Path:
        """As in :class:`distillation.Deal`, the reasons among the texts."""
        folder = self.folder / "start"
        if not (folder / "config.json").exists():
            texts = [str(row.rationale) for row in read(self.reasoned("labelled"))]
            make_model(folder, "tiny", [*texts, *map(str, range(10))], seed=self.seed)
        return folder

    def reasoned(self, rows: str) -> Path:
        """The rows of a set with their reasons."""
        file = self.folder / f"{rows}.reasons.jsonl"
        if not file.exists():
            sources = [self.labelled] if rows == "labelled" else [self.labelled, self.pool_with_labels]
            write_rows(file, [replace(row, rationale=reason(row)) for source in sources for row in read(source)])
        return file

    def plain(self, rows: str) -> Path:
        """The same without."""
        file = self.folder / f"{rows}.plain.jsonl"
        if not file.exists():
            write_rows(file, [replace(row, rationale=None) for row in read(self.reasoned(rows))])
        return file


def run_cell(deal: ReasonDeal, rows: str, arm: str) -> dict[str, Any]:
    """Train the student of one arm and judge it on the held-out rows."""
    name = f"{rows}-{arm}"
    value = deal.problem.tasks.model_dump(mode="json")
    for task in value["tasks"]:
        task["answer"] = "reason" if arm == "inside" else "label"
        task["budget"]["max_tokens"] = 160
    deal = ReasonDeal(replace(deal.problem, tasks=parse_tasks(value, "digits")), deal.seed, deal.folder, deal.quick)
    lesson = Lesson((deal.plain(rows) if arm == "label" else deal.reasoned(rows),))
    if arm == "beside":
        lesson = replace(lesson, settings=("train.reasons.weight=0.5",))
    model, told = deal.student(name, lesson)
    begun = perf_counter()
    predictions = predict(model, deal.problem.test, deal.folder / f"{name}.predictions.jsonl").out
    seconds = perf_counter() - begun
    settings = EvaluateSettings(mistakes=0)
    judged = evaluate(predictions, deal.problem.test, deal.folder / f"{name}.report", settings=settings)
    return {"f1": judged.overall["weighted_f1"].value, "predict_seconds": round(seconds, 1), **told}


def show(cells: dict[str, dict[str, Any]], seeds: Iterable[int]) -> None:
    """The table as Markdown."""
    print("\n| rows | arm | seeds | weighted F1 | better than the label alone |\n|---|---|---|---|---|")
    for rows in SETS:
        for arm in ARMS:
            scores = {seed: cells[key]["f1"] for seed in seeds if (key := f"{rows}-{arm}-{seed}") in cells}
            if not scores:
                continue
            f1 = interval(list(scores.values()))
            plain = {seed: cells[key]["f1"] for seed in scores if (key := f"{rows}-label-{seed}") in cells}
            gains = [score - plain[seed] for seed, score in scores.items() if seed in plain]
            gain = interval(gains) if gains and arm != "label" else None
            told = f"{gain['mean']:+.3f} ({gain['low']:+.3f} – {gain['high']:+.3f})" if gain else ""
            print(
                f"| {rows} | {arm} | {len(scores)} | {f1['mean']:.3f} ({f1['low']:.3f} – {f1['high']:.3f}) | {told} |"
            )


def main() -> None:
    """Run the cells that are missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("reasons-work"), help="folder for data and models")
    parser.add_argument("--out", type=Path, default=Path("reasons.json"), help="results, written after each cell")
    parser.add_argument("--rows", default=",".join(SETS), help="labelled (100), all; commas between")
    parser.add_argument("--arms", default=",".join(ARMS), help="arms, commas between")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], help="a training setting for a trial: train.max_steps=20")
    args = parser.parse_args()
    cells = Cells(args.out, {"set": args.set})
    for seed in range(args.seeds):
        folder = args.work / f"digits-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        deal = ReasonDeal(digits(args.work), seed, folder, tuple(args.set))
        for rows in args.rows.split(","):
            for arm in args.arms.split(","):
                cells.run(f"{rows}-{arm}-{seed}", partial(run_cell, deal, rows, arm))
    show(cells.done, range(args.seeds))


if __name__ == "__main__":
    main()
