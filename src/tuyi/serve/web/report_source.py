"""An evaluation as the page shows it: its numbers, and its mistakes with their rows, read once at the start."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuyi.data.options import ReadOptions
from tuyi.data.source import read
from tuyi.errors import ConfigError, TuyiError
from tuyi.evaluate.mistakes import view
from tuyi.evaluate.rows import JudgedTask, Mistake, join, load_predictions
from tuyi.model.folder import FolderInfo
from tuyi.model.measured import Measured, read_measured
from tuyi.predict.prediction import read_run
from tuyi.serve.web.shown import shown_bubbles, shown_labels
from tuyi.task.catalog import parse_tasks

if TYPE_CHECKING:
    from tuyi.task.catalog import TaskSet

__all__ = ["ReportSource", "own_report", "read_report"]

_METRICS, _PAGE = "metrics.json", "report.html"
_OWN = ("", "evaluation", "report")
"""Where in a model folder its evaluation may lie."""
_MOST_MISTAKES = 200
"""Mistakes of each task that are kept, the surest ones."""
_MOST_LABELS, _MOST_PAIRS = 60, 12
_SIDE = 420


@dataclass(frozen=True, eq=False, slots=True)
class ReportSource:
    """An evaluation.

    Args:
        summary: Plain data: ``overall``, and for each task its scores, labels and confusions.
        mistakes: For each task, the surest first.
        page: ``report.html``, to be downloaded; empty where there is none.
        missing: Why there are no mistakes to show, if so: ``predictions``, ``data`` or ``changed``.
    """

    summary: Mapping[str, Any]
    mistakes: Mapping[str, Sequence[Mapping[str, Any]]]
    page: str
    missing: str = ""

    def found(self, task: str, gold: str = "", predicted: str = "", begin: int = 0, most: int = 10) -> dict[str, Any]:
        """Some of the mistakes of a task.

        Args:
            task: Its name.
            gold: The true label; empty for all.
            predicted: The label that the model said; empty for all.
            begin: How many to pass over.
            most: How many to give.
        """
        fitting = [
            one
            for one in self.mistakes.get(task, ())
            if gold in ("", one["gold"]) and predicted in ("", one["predicted"])
        ]
        begin, most = max(0, begin), max(0, min(most, 50))
        return {"total": len(fitting), "mistakes": fitting[begin : begin + most]}


def own_report(model: str | Path, tasks: TaskSet) -> ReportSource | None:
    """The evaluation that a model folder itself holds, in it or in its ``evaluation`` or ``report``.

    Args:
        model: The model.
        tasks: What it answers.

    Returns:
        None where there is none, or none that can be read and is of these tasks.
    """
    folders = (Path(model) / name for name in _OWN)
    folder = next((folder for folder in folders if (folder / _METRICS).is_file()), None)
    try:
        return None if folder is None else read_report(folder, tasks)
    except ConfigError:
        return None  # nobody asked for it


def read_report(folder: Path, tasks: TaskSet) -> ReportSource:
    """Read the folder of an evaluation, and the rows that it got wrong from where it says that they lie.

    Args:
        folder: Where `tuyi evaluate` wrote it.
        tasks: What the model answers.

    Raises:
        ConfigError: There is none, it cannot be read, or it is of other tasks or labels.
    """
    measured = read_measured(folder, FolderInfo(tasks=tasks, base_model=""))
    value = json.loads((folder / _METRICS).read_text(encoding="utf-8"))
    missing, judged = "", {}
    try:
        judged = _judged(folder, value["made"])
    except _MissingError as error:
        missing = str(error)
    except TuyiError:
        missing = "changed"
    if not missing and any(len(one.ids) != measured.tasks[name].rows for name, one in judged.items() if one.ids):
        missing, judged = "changed", {}
    with ThreadPoolExecutor(4) as pool:  # opening pictures takes most of the time
        mistakes = {name: list(pool.map(_shown, one.mistakes)) for name, one in judged.items()}
    page = folder / _PAGE
    return ReportSource(
        summary=_summary(value, measured, {name: len(rows) for name, rows in mistakes.items()}),
        mistakes=mistakes,
        page=page.read_text(encoding="utf-8") if page.is_file() else "",
        missing=missing,
    )


class _MissingError(Exception):
    """A file that an evaluation was made from is not where it was."""


def _judged(folder: Path, made: Mapping[str, Any]) -> dict[str, JudgedTask]:
    predictions = _where(folder, made["predictions"], "predictions")
    data = _where(folder, made["data"], "data")
    options = ReadOptions.model_validate(made["settings"].get("read", {}))
    tasks = read_run(predictions).get("tasks")
    return join(
        load_predictions(predictions),
        predictions,
        read(data, options),
        parse_tasks(tasks, "the predictions' .run.json") if isinstance(tasks, dict) else None,
        _MOST_MISTAKES,
    )


def _where(folder: Path, named: str, what: str) -> Path:
    """A file that the evaluation names: at its place, or by its name in the evaluation's folder."""
    for file in (Path(named), folder / Path(named).name):
        if file.exists():
            return file
    raise _MissingError(what)


def _shown(mistake: Mistake) -> dict[str, Any]:
    seen = view(mistake, _SIDE)
    return {
        "id": seen.id,
        "row": mistake.example.place.row,
        "gold": seen.gold,
        "predicted": seen.predicted,
        "confidence": seen.confidence,
        "near": shown_labels(seen.near),
        "said": shown_bubbles(seen),
        "rationale": seen.rationale,
        "notes": {
            name: mistake.prediction.notes[name]
            for name in ("dropped_turns", "shrunk_images", "cut_characters")
            if mistake.prediction.notes.get(name)
        },
    }


def _summary(value: Mapping[str, Any], measured: Measured, kept: Mapping[str, int]) -> dict[str, Any]:
    return {
        "overall": value["overall"]["weighted_f1"],
        "level": measured.made.settings.level,
        "data": Path(measured.made.data).name,
        "tasks": [_task(name, one, kept.get(name, 0)) for name, one in value["tasks"].items()],
    }


def _task(name: str, one: Mapping[str, Any], kept: int) -> dict[str, Any]:
    labels = sorted(one["labels"], key=lambda label: -label["support"])
    shown = [label for label in labels if label["support"] or label["predicted"]]
    names, counts = one["confusion"]["labels"], one["confusion"]["counts"]
    pairs = [
        {"gold": gold, "predicted": names[at], "rows": many, "of": sum(row)}
        for number, (gold, row) in enumerate(zip(names, counts))
        for at, many in enumerate(row)
        if many and at != number
    ]
    calibration = one["calibration"]
    return {
        "name": name,
        "rows": one["rows"],
        "right": one["right"],
        "unlabelled": one["unlabelled"],
        "metrics": {key: one["metrics"][key] for key in ("weighted_f1", "accuracy", "macro_f1")},
        "majority": {"label": one["majority"]["label"], "weighted_f1": one["majority"]["weighted_f1"]},
        "ece": calibration["before"]["ece"] if calibration else None,
        "labels": shown,
        "unused": len(labels) - len(shown),
        "pairs": sorted(pairs, key=lambda pair: -pair["rows"])[:_MOST_PAIRS],
        "kept": kept,
    }
