"""From a predictions file and its gold rows to scores, calibration, comparison and a report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from tuyi.config import Settings
from tuyi.data.example import Example
from tuyi.data.options import ReadOptions
from tuyi.errors import ModelError, OutputError, TaskError
from tuyi.evaluate.bootstrap import Interval
from tuyi.evaluate.calibration import Calibration, calibrate, keep_temperature
from tuyi.evaluate.compare import Comparison, compare
from tuyi.evaluate.rows import JudgedTask, Mistake, join, load_predictions
from tuyi.evaluate.scores import Sampling, TaskScores, overall, score
from tuyi.predict.prediction import Prediction, read_run
from tuyi.task import TaskSet
from tuyi.task.catalog import parse_tasks
from tuyi.whole import write_whole

__all__ = ["Cost", "EvaluateSettings", "Evaluation", "Shortened", "TaskEvaluation", "evaluate"]


SHORTENINGS = {
    "shrunk_images": "pictures shrunk",
    "dropped_turns": "oldest turns left out",
    "cut_characters": "text cut",
}


class EvaluateSettings(Settings):
    """How an evaluation is made."""

    resamples: int = Field(default=2000, ge=100)
    """Bootstrap resamples."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Share of resamples inside an interval."""
    seed: int = Field(default=0, ge=0)
    """Of the resamples and of the halves of cross-validation."""
    bins: int = Field(default=15, ge=2)
    """Reliability bins."""
    mistakes: int = Field(default=12, ge=0)
    """Most confident mistakes shown for each task."""
    thumbnail_side: int = Field(default=360, ge=32)
    """Longer side of embedded pictures, in pixels."""
    read: ReadOptions = ReadOptions()
    """How to read a data file."""
    loss: Path | None = None
    """Picture of the training curve to show."""


@dataclass(frozen=True, slots=True)
class Shortened:
    """Rows that were shortened in one way to fit the budget, and how often the model was right on them."""

    way: str
    rows: int
    accuracy: float


@dataclass(frozen=True, slots=True)
class Cost:
    """Calls or tokens that a row took, where the predictions note it."""

    what: str
    mean: float
    most: float


@dataclass(frozen=True, slots=True, eq=False)
class TaskEvaluation:
    """One task, judged.

    Args:
        calibration: None where the predictions carry no probabilities.
        unlabelled: Rows without a gold label, left out of everything else.
        without_probabilities: Rows whose prediction carries none.
        baselines: Weighted F1 of other ways to answer, by name.
    """

    name: str
    about: str
    scores: TaskScores
    calibration: Calibration | None
    unlabelled: int
    without_probabilities: int
    shortened: tuple[Shortened, ...]
    costs: tuple[Cost, ...]
    mistakes: tuple[Mistake, ...]
    baselines: Mapping[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """What `evaluate` found.

    Args:
        overall: Plain mean of the tasks' scores; ``weighted_f1`` is the WWW2025 challenge's score.
        unscored: Tasks without a single labelled row, and how many rows they have.
        kept: Temperatures written into the model folder.
        run: How the predictions were made, as their file's description says.
        report, metrics: The files that were written.
    """

    overall: Mapping[str, Interval]
    tasks: Mapping[str, TaskEvaluation]
    comparison: Comparison | None
    report: Path
    metrics: Path
    predictions: Path
    data: str
    run: Mapping[str, Any]
    settings: EvaluateSettings
    unscored: Mapping[str, int] = field(default_factory=dict)
    kept: Mapping[str, Any] = field(default_factory=dict)


def evaluate(
    predictions: str | Path,
    data: str | Path | Iterable[Example],
    out: str | Path,
    *,
    tasks: TaskSet | None = None,
    compare_with: str | Path | None = None,
    baselines: Mapping[str, Mapping[str, float]] | None = None,
    keep_calibration: bool = False,
    settings: EvaluateSettings | None = None,
) -> Evaluation:
    """Judge a predictions file against labelled rows; write ``report.html`` and ``metrics.json`` into ``out``.

    Args:
        predictions: JSON lines that `tuyi predict` wrote.
        data: The rows that were predicted, labelled: a path that `tuyi.read` opens, or examples.
        out: Folder, made where missing; earlier reports in it are replaced.
        tasks: Their label sets count. None: the tasks that the run names, else the labels that the predictions list.
        compare_with: Another predictions file on the same rows.
        baselines: Task name → name of a baseline → its weighted F1, shown beside the model's.
        keep_calibration: Write the fitted temperatures into the folder of the model that made the predictions.
        settings: Resamples, bins, number of mistakes shown, …

    Raises:
        FormatError, DataError: Predictions or rows that cannot be read or do not belong together.
        LabelError: A label outside the task's set.
        TaskError: A task that is not in ``tasks``, is open, or whose labels nobody says.
        ModelError: ``keep_calibration`` without a model folder to keep it in.
        OutputError: ``out`` cannot be written.
    """
    from tuyi.data import read
    from tuyi.evaluate.metrics import metrics_json
    from tuyi.evaluate.report import render_report

    settings = settings or EvaluateSettings()
    predictions, out = Path(predictions), _made(Path(out))
    run = read_run(predictions)
    folder = _model_folder(run, predictions) if keep_calibration else None
    rows = read(data, settings.read) if isinstance(data, str | Path) else data
    joined = join(load_predictions(predictions), predictions, rows, tasks or _tasks_of(run), settings.mistakes)
    judged = {name: task for name, task in joined.items() if task.ids}
    sampling = Sampling(settings.resamples, settings.level, settings.seed)
    _check_baselines(baselines or {}, judged)
    found = {
        name: _judge(task, predictions, settings, sampling, stream, (baselines or {}).get(name, {}))
        for stream, (name, task) in enumerate(judged.items())
    }
    calibrations = {name: task.calibration for name, task in found.items() if task.calibration is not None}
    evaluation = Evaluation(
        overall=overall([task.scores for task in found.values()], settings.level),
        tasks=found,
        comparison=compare(judged, Path(compare_with), sampling) if compare_with else None,
        report=out / "report.html",
        metrics=out / "metrics.json",
        predictions=predictions,
        data=str(data) if isinstance(data, str | Path) else str(run.get("data", "examples given in memory")),
        run=run,
        settings=settings,
        unscored={name: task.unlabelled for name, task in joined.items() if not task.ids},
        kept=keep_temperature(folder, calibrations) if folder else {},
    )
    write_whole(evaluation.metrics, metrics_json(evaluation))
    write_whole(evaluation.report, render_report(evaluation))
    return evaluation


def _tasks_of(run: Mapping[str, Any]) -> TaskSet | None:
    """The tasks that a run asked; without them the predictions' own labels serve."""
    value = run.get("tasks")
    return parse_tasks(value, "the predictions' .run.json") if isinstance(value, dict) else None


def _model_folder(run: Mapping[str, Any], predictions: Path) -> Path:
    model = run.get("model")
    if not isinstance(model, str):
        raise ModelError(
            f"{predictions}.run.json names no model folder to keep a temperature in; leave out --keep-calibration"
        )
    folder = Path(model)
    if not (folder / "tuyi.json").is_file():
        raise ModelError(
            f"expected a model folder with a tuyi.json to keep a temperature in, found none at {model} (named by "
            f"{predictions}.run.json); leave out --keep-calibration, or predict again with the folder at its new place"
        )
    return folder


def _made(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out}: expected a folder to write the report into: {error.strerror or error}") from error
    return out


def _check_baselines(baselines: Mapping[str, Any], judged: Mapping[str, JudgedTask]) -> None:
    if unknown := [name for name in baselines if name not in judged]:
        raise TaskError(f"baselines: task {unknown[0]!r} was not evaluated, expected one of {', '.join(judged)}")


def _judge(
    judged: JudgedTask,
    file: Path,
    settings: EvaluateSettings,
    sampling: Sampling,
    stream: int,
    baselines: Mapping[str, float],
) -> TaskEvaluation:
    gold_N, predicted_N = judged.gold_N, judged.predicted_N
    calibration = None
    if not judged.without_probabilities:
        calibration = calibrate(
            judged.logprobs_NK(file),
            judged.probabilities_NK(file),
            gold_N,
            predicted_N,
            bins=settings.bins,
            seed=settings.seed,
        )
    right = [bool(value) for value in gold_N == predicted_N]
    return TaskEvaluation(
        name=judged.name,
        about=judged.task.about if judged.task else "",
        scores=score(gold_N, predicted_N, judged.labels.names, sampling, stream),
        calibration=calibration,
        unlabelled=judged.unlabelled,
        without_probabilities=judged.without_probabilities,
        shortened=_shortened(judged.predictions, right),
        costs=_costs(judged.predictions),
        mistakes=tuple(judged.mistakes),
        baselines=dict(baselines),
    )


def _shortened(predictions: list[Prediction], right: list[bool]) -> tuple[Shortened, ...]:
    found = []
    for key, way in SHORTENINGS.items():
        hits = [ok for prediction, ok in zip(predictions, right, strict=True) if prediction.notes.get(key)]
        if hits:
            found.append(Shortened(way, len(hits), sum(hits) / len(hits)))
    return tuple(found)


def _costs(predictions: list[Prediction]) -> tuple[Cost, ...]:
    found = []
    for key, what in (("tokens", "prompt tokens"), ("calls", "model calls"), ("output_tokens", "output tokens")):
        numbers = [prediction.notes[key] for prediction in predictions if key in prediction.notes]
        if len(numbers) == len(predictions):
            found.append(Cost(what, sum(numbers) / len(numbers), max(numbers)))
    return tuple(found)
