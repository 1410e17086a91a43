"""A hundred labelled rows and a teacher: how much of what labels for all rows would bring do its labels bring?

    python benchmarks/distillation.py --work distill-work --out distillation.json

For each data set and seed the rows are dealt anew into parts that share none: 100 labelled ones, the teacher's own, and
a pool whose labels nobody is shown. Held-out rows, the same each time, only judge. The teacher is the same tiny model,
trained on its own rows; it labels the pool with ``tuyi label`` and its defaults, the labelled rows as ``--check``. Each
arm then trains the same student, from the same weights with the same settings and the same number of optimizer steps,
on other rows:

- labelled: the 100 labelled rows alone
- self: with the pool as the student of those 100 rows labels it, no teacher
- hard: with the pool's rows that the teacher labels and the filter keeps
- soft: the same rows with the teacher's label distributions
- all: with the whole pool and its true labels, the upper bound

A gap is what "all" is better than "labelled"; an arm recovers a share of it. A cell that is finished is not run again,
one that was killed goes on; the table is of the cells that are there. More arms join :data:`ARMS`.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import runpy
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeAlias

from cells import Cells, interval
from models import make_model
from tuyi.config import load_settings
from tuyi.data import Example, ExampleWriter, read
from tuyi.data.sample import write_sample
from tuyi.distill.label import LabelSettings, label
from tuyi.evaluate.judge import EvaluateSettings, evaluate
from tuyi.predict.run import predict
from tuyi.task import TaskSet, load_tasks
from tuyi.train.run import train
from tuyi.train.settings import TrainRun
from tuyi.whole import write_whole

__all__ = ["ARMS", "Arm", "Deal", "Lesson", "Problem", "interval", "main", "run_cell", "table"]

LABELLED = 100
DIGITS = Path(__file__).parent.parent / "examples" / "digits"
SHORT = """\
name: sample
extends: www2025
tasks:
- {name: www2025-intent, prompt: "{content}", budget: {max_pixels: 15680, max_tokens: 512}}
- {name: www2025-scene, prompt: "{content}", budget: {max_pixels: 15680, max_tokens: 512}}
"""
"""The sample's tasks without their long wording: what the built-in model learns from in minutes."""


@dataclass(frozen=True)
class Problem:
    """Rows with true labels, and how they are learned.

    Args:
        rows, test: Data files; ``test`` only judges.
        own: Rows of the teacher's own.
        settings: Overrides of a training run; every student and teacher has them.
    """

    rows: Path
    test: Path
    tasks: TaskSet
    own: int
    settings: tuple[str, ...]


def digits(work: Path) -> Problem:
    """Handwritten digits: 1,438 rows to deal, 359 held out."""
    folder = work / "digits"
    if not folder.exists():
        runpy.run_path(str(DIGITS / "prepare.py"))["write"](folder)
    settings = ("train.batch_rows=32", "train.lr=2e-3", "train.max_steps=300")
    return Problem(folder / "train", folder / "test", load_tasks(DIGITS / "task.yaml"), 600, settings)


def sample(work: Path) -> Problem:
    """The built-in sample, dialogues and drawn pages in two tasks: 2,200 rows to deal, 480 held out."""
    folder = work / "sample"
    if not (folder / "test_labelled.json").exists():
        write_sample(folder, seed=0, train_rows=2200, test_rows=480)
    (work / "short.yaml").write_text(SHORT, encoding="utf-8")
    settings = ("train.batch_rows=16", "train.lr=1e-3", "train.max_steps=500")
    tasks = load_tasks(work / "short.yaml")
    return Problem(folder / "train.json", folder / "test_labelled.json", tasks, 1100, settings)


PROBLEMS: dict[str, Callable[[Path], Problem]] = {"digits": digits, "sample": sample}


@dataclass(frozen=True)
class Lesson:
    """What an arm teaches the student.

    Args:
        rows: Files with labelled rows.
        settings: Overrides of the training run, beside those of the problem.
    """

    rows: tuple[Path, ...]
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Deal:
    """The rows of a problem dealt for one seed; what several arms need is made once.

    Args:
        folder: Where everything of it lies.
        quick: Overrides for a trial.
    """

    problem: Problem
    seed: int
    folder: Path
    quick: tuple[str, ...] = ()

    @property
    def labelled(self) -> Path:
        """The labelled rows."""
        return self._part("labelled")

    @property
    def own(self) -> Path:
        """The teacher's own rows."""
        return self._part("own")

    @property
    def pool(self) -> Path:
        """Rows without labels."""
        return self._part("pool")

    @property
    def pool_with_labels(self) -> Path:
        """The same with their true labels."""
        return self._part("truth")

    def _part(self, name: str) -> Path:
        file = self.folder / f"{name}.jsonl"
        if not file.exists():
            self._deal()
        return file

    def _deal(self) -> None:
        by_label: dict[tuple[str, str | None], list[Example]] = {}
        for row in read(self.problem.rows):
            by_label.setdefault((self.problem.tasks.of(row).name, row.label), []).append(row)
        rng = random.Random(self.seed)
        for rows in by_label.values():
            rng.shuffle(rows)
        order = _in_turn(list(by_label.values()))
        labelled, own = order[:LABELLED], order[LABELLED : LABELLED + self.problem.own]
        pool = order[LABELLED + self.problem.own :]
        parts = {"labelled": labelled, "own": own, "truth": pool, "pool": [replace(row, label=None) for row in pool]}
        for name, rows in parts.items():
            write_rows(self.folder / f"{name}.jsonl", rows)

    @cached_property
    def start(self) -> Path:
        """The weights that every model begins with, its tokenizer from the texts that a student may see."""
        folder = self.folder / "start"
        if not (folder / "config.json").exists():
            texts = [
                text
                for task in self.problem.tasks
                for text in (*task.wording, *(task.labels.names if task.labels else ()))
            ]
            texts += [row.text for file in (self.labelled, self.pool) for row in read(file)]
            make_model(folder, "tiny", texts, seed=self.seed)
        return folder

    def student(self, name: str, lesson: Lesson) -> tuple[Path, dict[str, Any]]:
        """A model that learned a lesson, and how: trained once, gone on with where it was killed."""
        out = self.folder / name
        told = out / "told.json"
        if not told.exists():
            rows = list(_joined(lesson.rows))
            file = write_rows(self.folder / f"{name}.rows.jsonl", rows)
            same = (
                "train.freeze={vision: false, projector: false}",
                "train.weight_decay=0.01",
                f"train.seed={self.seed}",
            )
            overrides = [*same, "train.tensorboard=false", *self.problem.settings, *lesson.settings, *self.quick]
            settings = load_settings(TrainRun, None, overrides, data=file, out=out).train
            assert settings.max_steps is not None, "every arm learns for as many steps"
            epochs = math.ceil(settings.max_steps / math.ceil(len(rows) / settings.batch_rows))
            done = train(
                file,
                out,
                task=self.problem.tasks,
                model=str(self.start),
                settings=settings.model_copy(update={"epochs": float(epochs)}),
                resume=(out / "run.json").exists(),
            )
            found = {"rows": len(rows), "steps": done.steps, "train_seconds": round(done.seconds, 1)}
            write_whole(told, json.dumps(found))
        return out, json.loads(told.read_text(encoding="utf-8"))

    def teacher(self) -> Path:
        """The teacher, trained on its own rows."""
        return self.student("teacher", Lesson((self.own,)))[0]

    def teacher_rows(self, teacher: Path, name: str, check: Path | None, *changes: str) -> Path:
        """The pool's rows that a teacher labels and the filter keeps."""
        out = self.folder / f"{name}.jsonl"
        if not out.exists():
            label(self.pool, out, [str(teacher)], check=check, settings=load_settings(LabelSettings, None, [*changes]))
        return out


def write_rows(file: Path, rows: Iterable[Example]) -> Path:
    """Write rows as a data file."""
    with ExampleWriter(file, "messages", force=True) as writer:
        for row in rows:
            writer.write(replace(row, extra={}))
    return file


def _in_turn(groups: Sequence[list[Example]]) -> list[Example]:
    """Rows of all groups in turn, so that every beginning holds all labels alike."""
    longest = max(map(len, groups))
    return [rows[at] for at in range(longest) for rows in groups if at < len(rows)]


def _joined(files: Iterable[Path]) -> Iterable[Example]:
    for file in files:
        if file.stat().st_size:  # a filter may keep nothing
            yield from read(file)


Arm: TypeAlias = Callable[[Deal], Lesson]
"""What a student learns in a deal."""


def labelled_alone(deal: Deal) -> Lesson:
    """The labelled rows."""
    return Lesson((deal.labelled,))


def self_labelled(deal: Deal) -> Lesson:
    """The pool as the student of the labelled rows labels it; nobody measured its confidence, so much is asked."""
    own, _ = deal.student("labelled", labelled_alone(deal))
    return Lesson((deal.labelled, deal.teacher_rows(own, "by_itself", None, "select.confidence=0.9")))


def hard_labels(deal: Deal) -> Lesson:
    """The teacher's labels alone."""
    return Lesson((deal.labelled, _by_teacher(deal)), ("train.soft.weight=0",))


def soft_labels(deal: Deal) -> Lesson:
    """The teacher's labels and their distributions."""
    return Lesson((deal.labelled, _by_teacher(deal)))


def _by_teacher(deal: Deal) -> Path:
    return deal.teacher_rows(deal.teacher(), "by_teacher", deal.labelled)


def all_labelled(deal: Deal) -> Lesson:
    """The true labels of all rows but the teacher's."""
    return Lesson((deal.labelled, deal.pool_with_labels))


ARMS: dict[str, Arm] = {
    "labelled": labelled_alone,
    "self": self_labelled,
    "hard": hard_labels,
    "soft": soft_labels,
    "all": all_labelled,
    "teacher": lambda deal: Lesson((deal.own,)),
}
"""By name; the teacher's own score stands beside the students'."""
LOWEST, HIGHEST = "labelled", "all"


def run_cell(deal: Deal, arm: str) -> dict[str, Any]:
    """Train the student of one arm and judge it on the held-out rows."""
    lesson = ARMS[arm](deal)
    model, told = deal.student(arm, lesson)
    predictions = predict(model, deal.problem.test, deal.folder / f"{arm}.predictions.jsonl").out
    settings = EvaluateSettings(mistakes=0)
    judged = evaluate(predictions, deal.problem.test, deal.folder / f"{arm}.report", settings=settings)
    score = judged.overall["weighted_f1"]
    return {"f1": score.value, "f1_rows": [score.low, score.high], **told}


def table(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """By data set and arm: F1, rows, and the share of the gap between the lowest and the highest arm that it recovers.

    Args:
        cells: By ``data-seed-arm``.
    """
    of: dict[str, dict[str, dict[str, Mapping[str, Any]]]] = {}
    for key, cell in cells.items():
        name, seed, arm = key.split("-")
        of.setdefault(name, {}).setdefault(arm, {})[seed] = cell
    return {
        name: {arm: _line(arms[arm], arms.get(LOWEST, {}), arms.get(HIGHEST, {})) for arm in ARMS if arm in arms}
        for name, arms in of.items()
    }


def _line(cells: Mapping[str, Mapping[str, Any]], low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """One arm over its seeds."""
    shares = [
        (cell["f1"] - low[seed]["f1"]) / (high[seed]["f1"] - low[seed]["f1"])
        for seed, cell in cells.items()
        if seed in low and seed in high and high[seed]["f1"] > low[seed]["f1"]
    ]
    return {
        "seeds": len(cells),
        "f1": interval([one["f1"] for one in cells.values()]),
        "rows": statistics.mean(one["rows"] for one in cells.values()),
        "steps": statistics.mean(one["steps"] for one in cells.values()),
        "recovered": interval(shares) if shares else None,
    }


def show(found: Mapping[str, Any]) -> None:
    """The table as Markdown."""
    for name, arms in found.items():
        print(f"\n| {name} | seeds | rows | steps | weighted F1 | gap recovered |\n|---|---|---|---|---|---|")
        for arm, one in arms.items():
            share = _told(one["recovered"], 2) if one["recovered"] and arm not in (LOWEST, HIGHEST) else ""
            cells = (arm, one["seeds"], f"{one['rows']:.0f}", f"{one['steps']:.0f}", _told(one["f1"], 3), share)
            print(f"| {' | '.join(map(str, cells))} |")


def _told(value: Mapping[str, float], digits: int) -> str:
    mean, low, high = (f"{value[key]:.{digits}f}" for key in ("mean", "low", "high"))
    return mean if low == high else f"{mean} ({low} – {high})"


def main() -> None:
    """Run the cells that are missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("distill-work"), help="folder for data and models")
    parser.add_argument("--out", type=Path, default=Path("distillation.json"), help="results, written after each cell")
    parser.add_argument("--data", default="digits,sample", help="data sets, commas between")
    parser.add_argument("--arms", default=",".join(ARMS), help="arms, commas between")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], help="a training setting for a trial: train.max_steps=20")
    args = parser.parse_args()
    cells = Cells(args.out, {"set": args.set}, table)
    for seed in range(args.seeds):
        for name in args.data.split(","):
            args.work.mkdir(parents=True, exist_ok=True)
            deal = Deal(PROBLEMS[name](args.work), seed, args.work / f"{name}-{seed}", tuple(args.set))
            deal.folder.mkdir(exist_ok=True)
            for arm in args.arms.split(","):
                cells.run(f"{name}-{seed}-{arm}", partial(run_cell, deal, arm))
    show(table(cells.done))


if __name__ == "__main__":
    main()
