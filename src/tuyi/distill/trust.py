"""How far teachers and their filter can be trusted, on rows whose labels are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tuyi.data.example import Example
from tuyi.distill.averaged import average, candidates, recalibrated
from tuyi.distill.select import CONFIDENCE, Candidate, SelectSettings, pick_threshold, select
from tuyi.distill.teachers import Answers
from tuyi.errors import ConfigError, DataError, LabelError
from tuyi.evaluate.bootstrap import Interval
from tuyi.evaluate.calibration import Calibration, calibrate, calibration_errors
from tuyi.evaluate.scores import Sampling, TaskScores, score
from tuyi.predict.prediction import Prediction
from tuyi.task.catalog import TaskSet

__all__ = ["AVERAGE", "Filtered", "Judged", "Trust", "judge_teachers", "lowest_confidence"]

AVERAGE = "all teachers, averaged"


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """A teacher, or all of them together, on the labelled rows of one task.

    Args:
        scores: F1, accuracy and so on.
        ece: Expected calibration error of the probabilities as they come; None without probabilities.
        fitted_ece: The same at a fitted temperature, each half of the rows measured at the other half's.
        temperature: The one fitted on all the rows, which then is the teacher's; None where they determine none.
    """

    teacher: str
    task: str
    scores: TaskScores
    ece: float | None
    fitted_ece: float | None
    temperature: float | None


@dataclass(frozen=True, slots=True)
class Filtered:
    """What the filter does to the labelled rows of one task.

    Args:
        rows: All of them.
        kept: Those that it would keep, quotas not counted.
        precision: Share of right labels among those, with a Wilson interval of 95 %; None where none is kept.
    """

    task: str
    rows: int
    kept: int
    precision: Interval | None


@dataclass(frozen=True, slots=True, eq=False)
class Trust:
    """Judgement of teachers and filter.

    Args:
        judged: Each teacher in each task, then their average where there are several.
        temperatures: Fitted here, by teacher and task.
        lowest: Lowest confidence of each task.
        filtered: By task.
    """

    judged: tuple[Judged, ...]
    temperatures: Mapping[str, Mapping[str, float]]
    lowest: Mapping[str, float]
    filtered: tuple[Filtered, ...]


def lowest_confidence(settings: SelectSettings, tasks: TaskSet) -> dict[str, float]:
    """The lowest confidence of each task where no labelled rows choose it.

    Raises:
        ConfigError: A precision is asked for.
    """
    if settings.precision is not None:
        raise ConfigError(
            f"select.precision={settings.precision:g} picks the lowest confidence on labelled rows; "
            "name them with --check"
        )
    least = CONFIDENCE if settings.confidence is None else settings.confidence
    return {task.name: least for task in tasks}


def judge_teachers(
    answers: Answers, rows: Sequence[Example], tasks: TaskSet, weights: Sequence[float] | None, settings: SelectSettings
) -> Trust:
    """Judge teachers and filter, fit their temperatures, choose the lowest confidence.

    Args:
        answers: The teachers', to ``rows``.
        rows: Labelled rows.
        tasks: Whose labels count.
        weights: Of the teachers.
        settings: The filter.

    Raises:
        DataError: A row without a label, or no row that was answered.
        LabelError: A label outside the task's set.
        ConfigError: No confidence reaches the precision that is asked for.
    """
    gold = _gold(rows, tasks)
    judged = [one for model, predictions in answers.plain.items() for one in _judge(model, predictions, gold, tasks)]
    temperatures: dict[str, dict[str, float]] = {}
    for one in judged:
        if one.temperature is not None:
            temperatures.setdefault(one.teacher, {})[one.task] = one.temperature
    fitted = recalibrated(answers, temperatures)
    if len(answers.plain) > 1:
        judged += _judge(AVERAGE, average(fitted.plain, tasks, weights), gold, tasks, fit=False)
    found = candidates(fitted, tasks, weights)
    lowest = _lowest(found, gold, tasks, settings)
    return Trust(tuple(judged), temperatures, lowest, _filtered(found, gold, lowest, settings))


def _gold(rows: Sequence[Example], tasks: TaskSet) -> dict[str, tuple[str, str]]:
    """Task and label of each row, in the task's own spelling."""
    found = {}
    for row in rows:
        if row.label is None:
            raise DataError("expected a label on every row to check teachers by, found none", row.place)
        task = tasks.of(row)
        assert task.labels is not None, "closed tasks alone are asked"
        try:
            found[row.id] = (task.name, task.labels.canonical(row.label))
        except LabelError as error:
            raise error.at(row.place) from None
    return found


def _judge(
    teacher: str,
    predictions: Mapping[str, Prediction],
    gold: Mapping[str, tuple[str, str]],
    tasks: TaskSet,
    *,
    fit: bool = True,
) -> list[Judged]:
    found = []
    for stream, task in enumerate(tasks):
        assert task.labels is not None, "closed tasks alone are asked"
        names = task.labels.names
        rows = [one for one in predictions.values() if gold[one.id][0] == task.name]
        if not rows:
            continue
        gold_N = np.array([names.index(gold[one.id][1]) for one in rows], np.int64)
        said_N = np.array([names.index(task.labels.canonical(one.label)) for one in rows], np.int64)
        scores = score(gold_N, said_N, names, Sampling(), stream)
        ece, fitted = None, None
        if all(one.probabilities for one in rows):
            chances_NK = np.array([[one.probabilities[name] for name in names] for one in rows])
            ece = calibration_errors(chances_NK, gold_N, said_N).ece
            if fit:
                logs_NK = np.array([[one.logprobs[name] for name in names] for one in rows])
                fitted = calibrate(logs_NK, chances_NK, gold_N, said_N)
        found.append(_judged(teacher, task.name, scores, ece, fitted))
    if not found:
        raise DataError("none of the rows to check teachers by was answered")
    return found


def _judged(teacher: str, task: str, scores: TaskScores, ece: float | None, fitted: Calibration | None) -> Judged:
    return Judged(
        teacher=teacher,
        task=task,
        scores=scores,
        ece=ece,
        fitted_ece=fitted.after.ece if fitted and fitted.after else None,
        temperature=fitted.temperature if fitted else None,
    )


def _lowest(
    found: Sequence[Candidate], gold: Mapping[str, tuple[str, str]], tasks: TaskSet, settings: SelectSettings
) -> dict[str, float]:
    if settings.precision is None:
        return lowest_confidence(settings, tasks)
    all_agreeing = select(found, _without_quotas(settings), {task.name: 0.0 for task in tasks}).kept.values()
    lowest = {}
    for task in tasks:
        rows = [row for row in all_agreeing if row.task == task.name]
        right = [row.label == gold[row.id][1] for row in rows]
        least = pick_threshold([row.confidence for row in rows], right, settings.precision) if rows else None
        if least is None:
            share = f"{sum(right) / len(rows):.3f} of all {len(rows)}" if rows else "there is none of that task"
            raise ConfigError(
                f"select.precision={settings.precision:g}: no confidence reaches it on the check rows of {task.name} "
                f"({share} are right); ask for less, or take a better teacher"
            )
        lowest[task.name] = least
    return lowest


def _without_quotas(settings: SelectSettings) -> SelectSettings:
    return settings.model_copy(update={"at_most": None, "at_least": None})


def _filtered(
    found: Sequence[Candidate],
    gold: Mapping[str, tuple[str, str]],
    lowest: Mapping[str, float],
    settings: SelectSettings,
) -> tuple[Filtered, ...]:
    from scipy.stats import binomtest

    kept = select(found, _without_quotas(settings), lowest).kept
    told = []
    for task in lowest:
        rows = [row for row in found if row.task == task]
        right = [row.label == gold[row.id][1] for row in rows if row.id in kept]
        precision = None
        if right:
            bounds = binomtest(sum(right), len(right)).proportion_ci(0.95, "wilson")
            precision = Interval(sum(right) / len(right), float(bounds.low), float(bounds.high))
        if rows:
            told.append(Filtered(task, len(rows), len(right), precision))
    return tuple(told)
