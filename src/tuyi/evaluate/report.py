"""The report: one HTML file without scripts or anything fetched from elsewhere."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuyi.errors import OutputError
from tuyi.evaluate import charts, mistakes, wording
from tuyi.evaluate.metrics import versions
from tuyi.templates import templates

if TYPE_CHECKING:
    from jinja2 import Environment

    from tuyi.evaluate.judge import Evaluation, TaskEvaluation

__all__ = ["render_report"]

_PICTURE_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
METRIC_NAMES = {
    "weighted_f1": "weighted F1",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "weighted_precision": "weighted precision",
    "weighted_recall": "weighted recall",
    "macro_precision": "macro precision",
    "macro_recall": "macro recall",
}


def render_report(evaluation: Evaluation) -> str:
    """The text of ``report.html``.

    Raises:
        OutputError: The picture of the training curve cannot be read.
    """
    tasks = list(evaluation.tasks.values())
    comparison = evaluation.comparison
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            evaluation=evaluation,
            settings=evaluation.settings,
            rows=sum(task.scores.rows for task in tasks),
            right=sum(task.scores.right for task in tasks),
            unlabelled=sum(task.unlabelled for task in tasks),
            verdict=wording.verdict(evaluation),
            ranking=charts.ranking(evaluation.overall["weighted_f1"], wording.overall_baselines(evaluation.tasks)),
            tasks=[_task(task, evaluation.settings.thumbnail_side) for task in tasks],
            comparison=comparison,
            comparison_sentence=wording.comparison_sentence(comparison) if comparison else "",
            loss=_embedded(evaluation.settings.loss) if evaluation.settings.loss else None,
            made=_made(evaluation),
            names=METRIC_NAMES,
        )
    )


def _environment() -> Environment:
    environment = templates("tuyi.evaluate")
    environment.filters["share"] = lambda value: f"{value * 100:.2f}%"
    environment.filters["points"] = lambda value: f"{value * 100:+.1f}"
    environment.filters["three"] = lambda value: f"{value:.3f}"
    environment.filters["cost"] = wording.cost
    environment.filters["p_value"] = wording.p_value
    return environment


def _task(task: TaskEvaluation, side: int) -> dict[str, Any]:
    scores, calibration = task.scores, task.calibration
    return {
        "judged": task,
        "scores": scores,
        "ranking": charts.ranking(scores.metrics["weighted_f1"], wording.baselines_of(task)),
        "confusions": charts.most_confused(scores),
        "heat": charts.heat_map(scores),
        "labels": sorted(scores.labels, key=lambda item: -item.support),
        "most_rows": max(item.support for item in scores.labels),
        "calibration": calibration,
        "plot": charts.reliability_plot(calibration) if calibration else None,
        "calibration_sentence": wording.calibration_sentence(calibration) if calibration else "",
        "mistakes": [mistakes.view(item, side) for item in task.mistakes],
        "wrong": scores.rows - scores.right,
    }


def _embedded(file: Path) -> str:
    kind = _PICTURE_TYPES.get(file.suffix.lower())
    if kind is None:
        raise OutputError(
            f"loss picture {file}: expected {', '.join(_PICTURE_TYPES)}, found {file.suffix or 'no suffix'}"
        )
    try:
        content = file.read_bytes()
    except OSError as error:
        raise OutputError(f"loss picture {file} cannot be read: {error.strerror or error}") from error
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _made(evaluation: Evaluation) -> list[tuple[str, str]]:
    """How it was made, as names and texts."""
    settings, run = evaluation.settings, dict(evaluation.run)
    model = run.pop("model", None)
    rows = [("Model", _plain(model))] if model is not None else []
    rows += [("Data", evaluation.data), ("Predictions", str(evaluation.predictions))]
    run.pop("data", None)
    run.pop("tasks", None)
    rows += [(name.replace("_", " ").capitalize(), _plain(value)) for name, value in run.items()]
    level = f"{settings.level:.0%}"
    rows += [
        ("Intervals", f"{level} bootstrap percentile, {settings.resamples:,} resamples, seed {settings.seed}"),
        ("Calibration bins", str(settings.bins)),
        ("Evaluated with", ", ".join(f"{name} {number}" for name, number in versions().items())),
        ("Written", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
    ]
    return rows


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items()) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
