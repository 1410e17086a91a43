"""Scores of one task: averages with intervals, a table per label, the confusion matrix, the majority baseline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuyi.evaluate.bootstrap import METRICS, CellScores, Floats, Interval, Ints, cells_of, resample_cells, score_cells

__all__ = ["Confusion", "LabelScore", "Sampling", "TaskScores", "overall", "score", "score_of_majority"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How intervals are drawn: number of resamples, share of them inside, seed."""

    resamples: int = 2000
    level: float = 0.95
    seed: int = 0


@dataclass(frozen=True, slots=True)
class LabelScore:
    """Scores of one label.

    Args:
        support: Rows whose gold label it is.
        predicted: Rows for which the model said it.
        confused_with: What the model said most often instead of it, and how many times.
    """

    label: str
    support: int
    predicted: int
    precision: float
    recall: float
    f1: Interval
    confused_with: str | None
    confused: int


@dataclass(frozen=True, slots=True)
class Confusion:
    """Rows of one gold label for which the model said another."""

    gold: str
    predicted: str
    rows: int


@dataclass(frozen=True, slots=True, eq=False)
class TaskScores:
    """Scores of one task.

    Args:
        metrics: :data:`~tuyi.evaluate.bootstrap.METRICS` by name.
        resampled: The same of every resample, shape (R,); what :func:`overall` averages.
        labels: One entry per label, in the task's order.
        matrix_KK: Rows by gold label (first axis) and predicted label, in the task's order.
        majority_label: The most frequent gold label.
        majority: Scores of always answering it. It is found on the evaluated rows themselves, so it flatters the
            baseline, never the model.
    """

    rows: int
    right: int
    metrics: Mapping[str, Interval]
    resampled: Mapping[str, Floats]
    labels: tuple[LabelScore, ...]
    matrix_KK: NDArray[np.int64]
    majority_label: str
    majority: Mapping[str, float]

    @property
    def confusions(self) -> tuple[Confusion, ...]:
        """Every confusion that occurs, most frequent first."""
        names = [item.label for item in self.labels]
        pairs = [
            Confusion(names[gold], names[predicted], int(self.matrix_KK[gold, predicted]))
            for gold, predicted in zip(*np.nonzero(self.matrix_KK), strict=True)
            if gold != predicted
        ]
        return tuple(sorted(pairs, key=lambda pair: -pair.rows))


def score(
    gold_N: Ints, predicted_N: Ints, labels: Sequence[str], sampling: Sampling = Sampling(), stream: int = 0
) -> TaskScores:
    """Score one task.

    Averages are scikit-learn's with ``zero_division=0``: a label that is never predicted has precision 0, one without
    rows recall 0. Weighted averages weigh by support; macro averages run over the labels that occur in gold or
    predictions, as scikit-learn's do.

    Args:
        gold_N, predicted_N: Label indices of the rows; at least one row.
        labels: The task's labels, in its order.
        sampling: How intervals are drawn.
        stream: Number of the task, so that tasks are resampled independently.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    indices = np.arange(len(labels))
    matrix = confusion_matrix(gold_N, predicted_N, labels=indices)
    precision, recall, f1, support = precision_recall_fscore_support(
        gold_N, predicted_N, labels=indices, zero_division=0
    )
    (gold_C, predicted_C), counts_C = cells_of(gold_N, predicted_N)
    draws_RC = resample_cells(counts_C, sampling.resamples, (sampling.seed, stream))
    drawn = score_cells(draws_RC, gold_C, predicted_C, len(labels))
    majority = int(np.argmax(support))
    named = matrix.sum(axis=0)
    rows = []
    for k, label in enumerate(labels):
        other, times = _most_confused(matrix[k], k)
        rows.append(
            LabelScore(
                label=label,
                support=int(support[k]),
                predicted=int(named[k]),
                precision=float(precision[k]),
                recall=float(recall[k]),
                f1=_label_interval(f1[k], drawn, k, sampling.level),
                confused_with=labels[other] if times else None,
                confused=times,
            )
        )
    return TaskScores(
        rows=len(gold_N),
        right=int(np.trace(matrix)),
        metrics={
            name: Interval.of(value, drawn.metrics[name], sampling.level)
            for name, value in _averages(gold_N, predicted_N).items()
        },
        resampled=drawn.metrics,
        labels=tuple(rows),
        matrix_KK=matrix.astype(np.int64),
        majority_label=labels[majority],
        majority=score_of_majority(gold_N, majority),
    )


def score_of_majority(gold_N: Ints, majority: int) -> dict[str, float]:
    """Scores of answering ``majority`` for every row."""
    return _averages(gold_N, np.full_like(gold_N, majority))


def overall(tasks: Iterable[TaskScores], level: float = 0.95) -> dict[str, Interval]:
    """The plain mean of the tasks' scores, as the WWW2025 challenge counts; tasks are resampled independently."""
    listed = list(tasks)
    return {
        name: Interval.of(
            float(np.mean([task.metrics[name].value for task in listed])),
            np.mean([task.resampled[name] for task in listed], axis=0),
            level,
        )
        for name in METRICS
    }


def _averages(gold_N: Ints, predicted_N: Ints) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    found = {"accuracy": float(accuracy_score(gold_N, predicted_N))}
    for average in ("weighted", "macro"):
        precision, recall, f1, _ = precision_recall_fscore_support(
            gold_N, predicted_N, average=average, zero_division=0
        )
        found |= {f"{average}_f1": f1, f"{average}_precision": precision, f"{average}_recall": recall}
    return {name: float(found[name]) for name in METRICS}


def _label_interval(value: float, drawn: CellScores, label: int, level: float) -> Interval:
    """A label's F1 over the resamples in which it occurs at all; elsewhere its F1 says nothing."""
    values = drawn.f1_RK[drawn.occurs_RK[:, label], label]
    return Interval.of(value, values, level) if len(values) else Interval(float(value), float(value), float(value))


def _most_confused(row_K: Ints, label: int) -> tuple[int, int]:
    others = row_K.copy()
    others[label] = 0
    other = int(np.argmax(others))
    return other, int(others[other])
