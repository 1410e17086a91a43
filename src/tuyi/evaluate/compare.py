"""Two models on the same rows: is the difference more than luck?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tuyi.errors import DataError, Place
from tuyi.evaluate.bootstrap import METRICS, Floats, Interval, Ints, cells_of, resample_cells, score_cells
from tuyi.evaluate.rows import JudgedTask, canonical, load_predictions
from tuyi.evaluate.scores import Sampling
from tuyi.predict.prediction import Prediction

__all__ = ["ChangedRow", "Comparison", "McNemar", "TaskComparison", "compare", "mcnemar", "paired_difference"]


@dataclass(frozen=True, slots=True)
class McNemar:
    """The 2 × 2 counts of two models' rights and wrongs, and the exact test that the lone rights are an even split.

    Source: McNemar 1947; two-sided exact binomial form.
    """

    both_right: int
    only_this: int
    only_other: int
    both_wrong: int
    p_value: float


@dataclass(frozen=True, slots=True)
class ChangedRow:
    """A row that the two models answer differently."""

    id: str
    gold: str
    this: str
    other: str


@dataclass(frozen=True, slots=True, eq=False)
class TaskComparison:
    """One task of a comparison: differences (this minus other) with paired intervals, McNemar, changed rows."""

    difference: Mapping[str, Interval]
    resampled: Mapping[str, Floats]
    mcnemar: McNemar
    changed: tuple[ChangedRow, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """This predictions file against another one, on the same gold rows.

    Args:
        difference: Of the overall scores (plain mean of the tasks), this minus other.
        mcnemar: Over the rows of all tasks.
    """

    other: Path
    difference: Mapping[str, Interval]
    mcnemar: McNemar
    tasks: Mapping[str, TaskComparison]


def mcnemar(right_this_N: Floats | Ints, right_other_N: Floats | Ints) -> McNemar:
    """McNemar's exact test of two models' rights (1) and wrongs (0) on the same rows."""
    from scipy.stats import binomtest

    this, other = np.asarray(right_this_N, dtype=bool), np.asarray(right_other_N, dtype=bool)
    only_this, only_other = int((this & ~other).sum()), int((~this & other).sum())
    differing = only_this + only_other
    return McNemar(
        both_right=int((this & other).sum()),
        only_this=only_this,
        only_other=only_other,
        both_wrong=int((~this & ~other).sum()),
        p_value=float(binomtest(only_this, differing, 0.5).pvalue) if differing else 1.0,
    )


def paired_difference(
    gold_N: Ints, this_N: Ints, other_N: Ints, labels: int, sampling: Sampling, stream: int = 0
) -> tuple[dict[str, float], Mapping[str, Floats]]:
    """Differences of scores, this minus other, of all rows and of resamples that draw the same rows for both.

    Args:
        gold_N, this_N, other_N: Label indices.
        labels: Number of labels.
        sampling: Number of resamples, seed.
        stream: Number of the task.

    Returns:
        The difference of each metric, and the same of every resample, shape (R,).
    """
    (gold_C, this_C, other_C), counts_C = cells_of(gold_N, this_N, other_N)

    def difference(counts_RC: Ints) -> dict[str, Floats]:
        this = score_cells(counts_RC, gold_C, this_C, labels).metrics
        other = score_cells(counts_RC, gold_C, other_C, labels).metrics
        return {name: this[name] - other[name] for name in METRICS}

    whole = difference(counts_C[None])
    return (
        {name: float(values[0]) for name, values in whole.items()},
        difference(resample_cells(counts_C, sampling.resamples, (sampling.seed, stream))),
    )


def compare(judged: Mapping[str, JudgedTask], other: Path, sampling: Sampling) -> Comparison:
    """Compare judged predictions with another predictions file.

    Args:
        judged: This model's rows beside their gold labels.
        other: The other model's predictions file.
        sampling: How intervals are drawn.

    Raises:
        DataError: A labelled row that the other file does not answer, or answers as another task.
        LabelError: A label outside the task's set.
    """
    answers = load_predictions(other)
    tasks, rights_this, rights_other = {}, [], []
    for stream, (name, task) in enumerate(judged.items()):
        other_N = _labels_of(task, answers, other)
        gold_N, this_N = task.gold_N, task.predicted_N
        value, resampled = paired_difference(gold_N, this_N, other_N, len(task.labels), sampling, stream)
        names = task.labels.names
        rights_this.append(this_N == gold_N)
        rights_other.append(other_N == gold_N)
        tasks[name] = TaskComparison(
            difference={key: Interval.of(value[key], resampled[key], sampling.level) for key in METRICS},
            resampled=resampled,
            mcnemar=mcnemar(rights_this[-1], rights_other[-1]),
            changed=tuple(
                ChangedRow(task.ids[n], names[gold_N[n]], names[this_N[n]], names[other_N[n]])
                for n in np.flatnonzero(this_N != other_N)
            ),
        )
    difference = {
        key: Interval.of(
            float(np.mean([task.difference[key].value for task in tasks.values()])),
            np.mean([task.resampled[key] for task in tasks.values()], axis=0),
            sampling.level,
        )
        for key in METRICS
    }
    return Comparison(other, difference, mcnemar(np.concatenate(rights_this), np.concatenate(rights_other)), tasks)


def _labels_of(task: JudgedTask, answers: Mapping[str, Prediction], file: Path) -> Ints:
    if missing := [id for id in task.ids if id not in answers]:
        raise DataError(
            f"expected predictions for the same rows, {len(missing)} of {len(task.ids)} rows of {task.name} have none "
            f"(first: {', '.join(missing[:3])})",
            Place(file),
        )
    found = []
    for id in task.ids:
        place = Place(file, id=id)
        if answers[id].task != task.name:
            raise DataError(f"answers task {answers[id].task!r}, expected {task.name!r}", place)
        found.append(task.labels.names.index(canonical(task.labels, answers[id].label, place)))
    return np.asarray(found, dtype=np.int64)
