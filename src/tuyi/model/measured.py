"""Scores that `tuyi evaluate` wrote, as a model card shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from tuyi.config import explain_errors
from tuyi.errors import ConfigError
from tuyi.model.folder import FolderInfo

__all__ = ["Calibrated", "LabelRow", "Measured", "MeasuredTask", "Range", "read_measured"]

_FILE = "metrics.json"


class Range(BaseModel):
    """A score and its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f}–{self.high:.3f})"


class LabelRow(BaseModel):
    """Scores of one label; as :class:`~tuyi.evaluate.scores.LabelScore`."""

    label: str
    support: int
    precision: float
    recall: float
    f1: Range
    confused_with: str | None
    confused: int


class _Errors(BaseModel):
    ece: float


class Calibrated(BaseModel):
    """How far the confidence could be believed, before and after a fitted temperature."""

    before: _Errors
    after: _Errors | None
    temperature: float | None


class MeasuredTask(BaseModel):
    """One task."""

    rows: int
    metrics: dict[str, Range]
    majority: dict[str, Any]
    baselines: dict[str, float]
    labels: list[LabelRow]
    calibration: Calibrated | None


class _Settings(BaseModel):
    level: float


class _Made(BaseModel):
    data: str
    run: dict[str, Any]
    settings: _Settings


class Measured(BaseModel):
    """An evaluation.

    Source: ``metrics.json``, described in :mod:`tuyi.evaluate.metrics`.
    """

    format: Literal[1]
    tasks: dict[str, MeasuredTask]
    made: _Made


def read_measured(folder: Path, info: FolderInfo | None) -> Measured:
    """Read an evaluation and make sure that it is one of a model's tasks.

    Args:
        folder: Where `tuyi evaluate` wrote it.
        info: What the model remembers.

    Raises:
        ConfigError: There is none, it cannot be read, or it is of other tasks or labels.
    """
    file = folder / _FILE
    try:
        found = Measured.model_validate_json(file.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"{folder} holds no evaluation: {_FILE} cannot be read ({error.strerror}); expected the folder that "
            "`tuyi evaluate --out` wrote"
        ) from error
    except ValidationError as error:
        raise ConfigError(explain_errors(error, str(file), Measured)) from error
    labels = {task.name: task.labels.names if task.labels else () for task in info.tasks} if info else {}
    for name, task in found.tasks.items():
        if name not in labels:
            known = f"the model's are {', '.join(labels)}" if labels else "no task is known of the model"
            raise ConfigError(f"{file} is an evaluation of task {name}; {known}")
        if odd := {row.label for row in task.labels} ^ set(labels[name]):
            raise ConfigError(f"{file} is an evaluation with other labels: {min(odd)!r} is in one of the two only")
    return found
