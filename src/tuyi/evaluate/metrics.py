"""``metrics.json``: everything that the report says in numbers, under keys that stay.

::

    format        1
    overall       metric → {value, low, high}; plain mean of the tasks
    tasks         task name →
      rows, right, unlabelled
      metrics       metric → {value, low, high}
      majority      {label, metric → value}: always answering the most frequent gold label
      baselines     name → weighted F1, as given
      labels        [{label, support, predicted, precision, recall, f1: {value, low, high}, confused_with, confused}]
      confusion     {labels: […], counts: [[…]]}, gold label by row, predicted label by column
      calibration   {before, after: {ece, brier, nll, confidence, accuracy}, temperature, rows, bins, …} or null
      shortened     [{way, rows, accuracy}]
      costs         [{what, mean, most}]
    comparison    {other, difference, mcnemar, tasks: name → {difference, mcnemar, changed}} or null
    unscored      task name → rows, of tasks without a labelled row
    kept          temperatures written into the model folder
    made          {predictions, data, run, settings, versions}

Metrics: weighted_f1, accuracy, macro_f1, weighted_precision, weighted_recall, macro_precision, macro_recall.
An infinite number (a true label at probability 0) is written as null.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from tuyi.evaluate.bootstrap import Interval

if TYPE_CHECKING:
    from tuyi.evaluate.compare import Comparison, TaskComparison
    from tuyi.evaluate.judge import Evaluation, TaskEvaluation

__all__ = ["metrics_json", "versions"]


def metrics_json(evaluation: Evaluation) -> str:
    """The text of ``metrics.json``."""
    value = {
        "format": 1,
        "overall": _intervals(evaluation.overall),
        "tasks": {name: _task(task) for name, task in evaluation.tasks.items()},
        "comparison": _comparison(evaluation.comparison) if evaluation.comparison else None,
        "unscored": dict(evaluation.unscored),
        "kept": dict(evaluation.kept),
        "made": {
            "predictions": str(evaluation.predictions),
            "data": evaluation.data,
            "run": {key: value for key, value in evaluation.run.items() if key != "tasks"},
            "settings": evaluation.settings.model_dump(mode="json"),
            "versions": versions(),
        },
    }
    return json.dumps(_finite(value), ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def versions() -> dict[str, str]:
    """Versions of what the numbers come from."""
    names = ("tuyi", "numpy", "scipy", "scikit-learn")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _intervals(metrics: Mapping[str, Interval]) -> dict[str, Any]:
    return {name: asdict(interval) for name, interval in metrics.items()}


def _task(task: TaskEvaluation) -> dict[str, Any]:
    scores = task.scores
    return {
        "rows": scores.rows,
        "right": scores.right,
        "unlabelled": task.unlabelled,
        "metrics": _intervals(scores.metrics),
        "majority": {"label": scores.majority_label, **scores.majority},
        "baselines": dict(task.baselines),
        "labels": [asdict(item) for item in scores.labels],
        "confusion": {"labels": [item.label for item in scores.labels], "counts": scores.matrix_KK.tolist()},
        "calibration": asdict(task.calibration) if task.calibration else None,
        "shortened": [asdict(item) for item in task.shortened],
        "costs": [asdict(item) for item in task.costs],
    }


def _comparison(comparison: Comparison) -> dict[str, Any]:
    def one(task: TaskComparison) -> dict[str, Any]:
        return {
            "difference": _intervals(task.difference),
            "mcnemar": asdict(task.mcnemar),
            "changed": [asdict(row) for row in task.changed],
        }

    return {
        "other": str(comparison.other),
        "difference": _intervals(comparison.difference),
        "mcnemar": asdict(comparison.mcnemar),
        "tasks": {name: one(task) for name, task in comparison.tasks.items()},
    }


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
