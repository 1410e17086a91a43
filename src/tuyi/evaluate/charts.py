"""Where the marks of the report's charts lie; the template draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tuyi.evaluate.bootstrap import Interval
from tuyi.evaluate.calibration import Calibration, ReliabilityBin
from tuyi.evaluate.scores import TaskScores

__all__ = ["Cell", "HeatMap", "HeatRow", "Mark", "Plot", "Ranking", "heat_map", "ranking", "reliability_plot"]

MOST_LABELS = 40
FEW_ROWS = 5


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of the heat map: count, opacity of its colour (0–1), whether it is a right answer, hover text."""

    count: int
    strength: float
    right: bool
    title: str


@dataclass(frozen=True, slots=True)
class HeatRow:
    """Cells of one gold label."""

    label: str
    support: int
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class HeatMap:
    """The confusion matrix over the labels that occur.

    Args:
        unused: Labels that occur neither in gold nor in predictions.
        hidden: Labels left out because only the most confused ones fit.
    """

    labels: tuple[str, ...]
    rows: tuple[HeatRow, ...]
    unused: tuple[str, ...]
    hidden: int


def heat_map(scores: TaskScores) -> HeatMap:
    """The confusion matrix as cells; colour by share of the gold label's rows, labels in the task's order."""
    names = [item.label for item in scores.labels]
    matrix = scores.matrix_KK
    busy_K = matrix.sum(axis=0) + matrix.sum(axis=1)
    wrong_K = busy_K - 2 * matrix.diagonal()
    used = [k for k in range(len(names)) if busy_K[k]]
    most = {int(k) for k in np.lexsort((-busy_K, -wrong_K))[:MOST_LABELS]}
    shown = [k for k in used if k in most]
    rows = []
    for gold in shown:
        support = int(matrix[gold].sum())
        cells = tuple(_cell(int(matrix[gold, said]), support, names[gold], names[said]) for said in shown)
        rows.append(HeatRow(names[gold], support, cells))
    return HeatMap(
        labels=tuple(names[k] for k in shown),
        rows=tuple(rows),
        unused=tuple(name for k, name in enumerate(names) if not busy_K[k]),
        hidden=len(used) - len(shown),
    )


def _cell(count: int, support: int, gold: str, said: str) -> Cell:
    share = count / support if support else 0.0
    title = f"{gold}: {count} of {support} right" if gold == said else f"{gold} → {said}: {count} of {support}"
    return Cell(count, round(share**0.6, 3), gold == said, title)


@dataclass(frozen=True, slots=True)
class Mark:
    """One score of a ranking; ``low`` and ``high`` only for the model itself."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Ranking:
    """The model's score among its baselines."""

    marks: tuple[Mark, ...]


def ranking(model: Interval, baselines: Mapping[str, float]) -> Ranking:
    """The model first, baselines below it, best first."""
    others = sorted((Mark(name, value) for name, value in baselines.items()), key=lambda mark: -mark.value)
    return Ranking((Mark("this model", model.value, model.low, model.high), *others))


@dataclass(frozen=True, slots=True)
class Plot:
    """A reliability diagram in SVG units: a square of ``size`` with its origin at (``left``, ``top``).

    Args:
        bars: x, y, width, height, hover text of the accuracy of each bin, and whether it holds under 5 rows.
        gaps: The same between accuracy and confidence, with whether the model was too sure.
        dots: x, y, radius, hover text of the bins after the fitted temperature.
        counts: The same as bars for the number of rows in each bin, below the square.
    """

    bars: tuple[tuple[float, float, float, float, str, bool], ...]
    gaps: tuple[tuple[float, float, float, float, bool], ...]
    dots: tuple[tuple[float, float, float, str], ...]
    counts: tuple[tuple[float, float, float, float, str], ...]
    left: int = 44
    top: int = 12
    size: int = 300
    strip: int = 46


def reliability_plot(calibration: Calibration) -> Plot:
    """Marks of the reliability diagram."""
    left, top, size, strip = 44, 12, 300, 46
    most = max(item.rows for item in calibration.bins)
    bars, gaps, counts = [], [], []
    for item in calibration.bins:
        x, width = left + item.low * size + 1, (item.high - item.low) * size - 2
        y, tall = top + (1 - item.accuracy) * size, item.accuracy * size
        bars.append((_r(x), _r(y), _r(width), _r(tall), _said(item), item.rows < FEW_ROWS))
        upper = max(item.accuracy, item.confidence)
        gap = abs(item.accuracy - item.confidence)
        sure = item.confidence > item.accuracy
        gaps.append((_r(x), _r(top + (1 - upper) * size), _r(width), _r(gap * size), sure))
        tall = max(1.5, strip * item.rows / most)
        counts.append((_r(x), _r(top + size + 34 + strip - tall), _r(width), _r(tall), f"{item.rows} rows"))
    most_after = max((item.rows for item in calibration.bins_after), default=1)
    dots = [
        (
            _r(left + item.confidence * size),
            _r(top + (1 - item.accuracy) * size),
            _r(1.8 + 4 * (item.rows / most_after) ** 0.5),
            _said(item),
        )
        for item in calibration.bins_after
    ]
    return Plot(tuple(bars), tuple(gaps), tuple(dots), tuple(counts), left, top, size, strip)


def _said(item: ReliabilityBin) -> str:
    return f"{item.rows} rows: {item.confidence:.0%} sure, {item.accuracy:.0%} right"


def _r(value: float) -> float:
    return round(value, 2)


def most_confused(scores: TaskScores, limit: int = 6) -> Sequence[tuple[str, str, int, int]]:
    """The most frequent confusions: gold, said, rows, rows of the gold label."""
    support = {item.label: item.support for item in scores.labels}
    return [(pair.gold, pair.predicted, pair.rows, support[pair.gold]) for pair in scores.confusions[:limit]]
