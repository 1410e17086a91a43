"""The stages of one round: a teacher's labels, the rows, a student, its predictions, its scores."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from tuyi.data.example import Example
from tuyi.data.options import ReadOptions
from tuyi.data.source import scan
from tuyi.data.write import ExampleWriter
from tuyi.distill.label import LabelSettings, label
from tuyi.distill.settings import DistillSettings
from tuyi.encode.survey import OnBadRow
from tuyi.evaluate.judge import EvaluateSettings, evaluate
from tuyi.model.folder import FILE
from tuyi.predict.run import predict
from tuyi.task.catalog import TaskSet
from tuyi.train.run import train
from tuyi.train.single import free_memory
from tuyi.whole import output_errors, write_whole

__all__ = ["Outcome", "Student", "place_model"]

Outcome: TypeAlias = tuple[list[Path], dict[str, Any]]
"""The files that a stage wrote and will not touch again, and its result."""
_NOT_THE_MODEL = {"checkpoints", "logs", "run.json", "loss.jsonl", "loss.png"}


@dataclass(frozen=True, slots=True, eq=False)
class Student:
    """How the students of all rounds are made; arguments as for :func:`tuyi.distill.rounds.distill`."""

    labelled: str | Path
    unlabelled: str | Path
    valid: str | Path
    tasks: TaskSet
    model: str
    settings: DistillSettings
    on_bad_row: OnBadRow
    progress: Callable[[int, int], None]
    tell: Callable[[str], None]
    console: Any

    def label(self, folder: Path, teacher: str | None, before: Path) -> Outcome:
        """A teacher's labels of the unlabelled rows.

        Args:
            folder: Of the round.
            teacher: Who labels; the student of the round before where None.
            before: Folder of the round before.
        """
        settings = self.settings
        done = label(
            self.unlabelled,
            folder / "labelled.jsonl",
            [teacher or str(before / "model")],
            task=self.tasks,
            check=self.valid,
            settings=LabelSettings(
                select=settings.select,
                views=settings.views,
                predict=settings.ask if teacher else settings.predict,
                read=settings.read,
            ),
            on_bad_row=self.on_bad_row,
            progress=self.progress,
            tell=self.tell,
        )
        free_memory()
        labels, others = folder / "labels.json", before / "labels.json"
        earlier = json.loads(others.read_text(encoding="utf-8")) if others.exists() else None
        write_whole(labels, json.dumps(done.labels, ensure_ascii=False))
        result = {
            "teacher": teacher or "the student of the round before",
            "rows": done.rows,
            "kept": done.kept,
            "agreement": _agreement(earlier, done.labels) if earlier is not None else None,
        }
        return [done.out, labels], result

    def rows(self, folder: Path) -> Outcome:
        """One training file of the labelled rows and the kept ones, which may have the same ids."""
        counts = {"labelled": 0, "kept": 0}
        with ExampleWriter(folder / "train.jsonl", "messages", force=True) as writer:
            for row in self._examples(self.labelled, self.settings.read):
                writer.write(replace(row, extra={}))
                counts["labelled"] += 1
            if (folder / "labelled.jsonl").exists():
                for row in self._examples(folder / "labelled.jsonl", ReadOptions()):
                    writer.write(replace(row, id=f"unlabelled/{row.id}", extra={}))
                    counts["kept"] += 1
        return [writer.out], counts

    def train(self, folder: Path) -> Outcome:
        """A student that learns from the round's rows, from the base model on."""
        settings, out = self.settings.train, folder / "model"
        watched = settings.early_stop is not None or settings.eval_steps is not None
        done = train(
            folder / "train.jsonl",
            out,
            task=self.tasks,
            model=self.model,
            valid=self.valid if watched else None,
            settings=settings,
            budget=self.settings.budget,
            on_bad_row=self.on_bad_row,
            resume=out.exists(),
            console=self.console,
        )
        free_memory()
        # tuyi.json will still be given its temperatures
        return [path for path in _model_files(out) if path.name != FILE], {"steps": done.steps, "loss": done.loss}

    def predict(self, folder: Path) -> Outcome:
        """Its predictions of the validation rows."""
        out = folder / "valid.jsonl"
        predict(
            folder / "model",
            self.valid,
            out,
            settings=self.settings.predict,
            options=self.settings.read,
            on_bad_row=self.on_bad_row,
            progress=self.progress,
            tell=self.tell,
        )
        free_memory()
        return [out], {}

    def judge(self, folder: Path) -> Outcome:
        """Scores on the validation rows; the model keeps the temperatures that they determine."""
        found = evaluate(
            folder / "valid.jsonl",
            self.valid,
            folder / "evaluation",
            keep_calibration=True,
            settings=EvaluateSettings(read=self.settings.read),
        )
        score = found.overall["weighted_f1"]
        files = [found.metrics, *(path for path in _model_files(folder / "model") if path.name == FILE)]
        return files, {"weighted_f1": [score.value, score.low, score.high]}

    def _examples(self, data: str | Path, options: ReadOptions) -> Iterator[Example]:
        for row in scan(data, options):
            if isinstance(row, Example):
                yield row
            elif row.severity == "error" and self.on_bad_row == "stop":
                raise row.to_error()
            else:
                self.tell(f"left out: {row}")


def _agreement(earlier: Mapping[str, str], now: Mapping[str, str]) -> float | None:
    """Share of the rows of both labellings with the same label."""
    common = [id for id in now if id in earlier]
    return sum(now[id] == earlier[id] for id in common) / len(common) if common else None


def _model_files(folder: Path) -> list[Path]:
    """The files of a model folder, without those of its training."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not _NOT_THE_MODEL & set(path.relative_to(folder).parts)
    )


def place_model(model: Path, out: Path) -> None:
    """Put the files of a model folder into ``out`` too, ``tuyi.json`` last; as hard links where that can be."""
    for path in sorted(_model_files(model), key=lambda path: path.name == FILE):
        target = out / path.relative_to(model)
        with output_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f".{target.name}.{os.getpid()}.part")
            part.unlink(missing_ok=True)
            try:
                os.link(path, part)
            except OSError:  # another file system, or one without links
                shutil.copyfile(path, part)
            part.replace(target)
