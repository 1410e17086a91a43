"""Bootstrap intervals of classification scores, from counts alone.

Drawing N rows with replacement and counting them by (gold, predicted) cell is the same as one multinomial draw over the
non-empty cells, so thousands of resamples cost one matrix product instead of thousands of passes over the rows.
Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapters 6 and 13 (percentile interval).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["METRICS", "CellScores", "Interval", "cells_of", "resample_cells", "score_cells"]

METRICS = (
    "weighted_f1",
    "accuracy",
    "macro_f1",
    "weighted_precision",
    "weighted_recall",
    "macro_precision",
    "macro_recall",
)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A score with the bounds between which its bootstrap resamples lie."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, values_R: Floats, level: float) -> Interval:
        """The percentile interval of resampled values.

        Args:
            value: The score of all rows.
            values_R: The score of each resample.
            level: Share of resamples inside, such as 0.95.
        """
        low, high = np.quantile(values_R, [(1 - level) / 2, (1 + level) / 2])
        return cls(float(value), float(low), float(high))


@dataclass(frozen=True, slots=True, eq=False)
class CellScores:
    """Scores of R resamples.

    Args:
        metrics: Of shape (R,), by name.
        f1_RK: F1 of every label, 0 where it does not occur.
        occurs_RK: Whether the label occurs in gold or predictions of the resample.
    """

    metrics: Mapping[str, Floats]
    f1_RK: Floats
    occurs_RK: NDArray[np.bool_]


def cells_of(*columns_N: Ints) -> tuple[tuple[Ints, ...], Ints]:
    """The distinct rows of some integer columns, as columns again, and how often each occurs."""
    cells_CD, counts_C = np.unique(np.stack(columns_N, axis=1), axis=0, return_counts=True)
    return tuple(cells_CD.T.astype(np.int64)), counts_C.astype(np.int64)


def resample_cells(counts_C: Ints, resamples: int, seed: tuple[int, ...]) -> Ints:
    """Counts of ``resamples`` draws with replacement, shape (R, C)."""
    total = int(counts_C.sum())
    return np.random.default_rng(seed).multinomial(total, counts_C / total, size=resamples)


def score_cells(counts_RC: Ints, gold_C: Ints, predicted_C: Ints, labels: int) -> CellScores:
    """Scores of many counted samples at once, as scikit-learn defines them with ``zero_division=0``.

    Macro averages run over the labels that occur in gold or predictions of that sample.

    Args:
        counts_RC: How often each cell occurs in each sample.
        gold_C, predicted_C: Label indices of the cells.
        labels: Number of labels K.
    """
    counts = counts_RC.astype(np.float64)
    onehot_K = np.eye(labels)
    support_RK = counts @ onehot_K[gold_C]
    named_RK = counts @ onehot_K[predicted_C]
    right_RK = counts @ (onehot_K[gold_C] * (gold_C == predicted_C)[:, None])
    total_R = counts.sum(axis=1)
    precision_RK = _ratio(right_RK, named_RK)
    recall_RK = _ratio(right_RK, support_RK)
    f1_RK = _ratio(2 * right_RK, support_RK + named_RK)
    occurs_RK = (support_RK + named_RK) > 0
    metrics = {"accuracy": right_RK.sum(axis=1) / total_R}
    for name, values_RK in (("f1", f1_RK), ("precision", precision_RK), ("recall", recall_RK)):
        metrics[f"weighted_{name}"] = (values_RK * support_RK).sum(axis=1) / total_R
        metrics[f"macro_{name}"] = values_RK.sum(axis=1) / occurs_RK.sum(axis=1)
    return CellScores({name: metrics[name] for name in METRICS}, f1_RK, occurs_RK)


def _ratio(over: Floats, under: Floats) -> Floats:
    return np.divide(over, under, out=np.zeros_like(over), where=under > 0)
