"""How a model is distilled, and a whole distillation as a run file says it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from tuyi.config import Settings
from tuyi.data.options import ReadOptions
from tuyi.distill.select import SelectSettings
from tuyi.distill.views import ViewSettings
from tuyi.predict.settings import PredictSettings
from tuyi.train.settings import TrainSettings

__all__ = ["DistillRun", "DistillSettings", "RoundSettings"]


class RoundSettings(Settings):
    """How many rounds."""

    rounds: int = Field(default=3, gt=0)
    """Most rounds of teacher's labels; round 0, on the labelled rows alone, is not counted. May be raised later."""
    patience: int = Field(default=1, gt=0)
    """Stop after so many rounds without a better weighted F1."""
    keep_all: bool = False
    """Whether the weights of every round are kept, not only those of the best and the last one."""


class DistillSettings(Settings):
    """How a model is distilled."""

    distill: RoundSettings = RoundSettings()
    """How many rounds."""
    train: TrainSettings = TrainSettings()
    """How each round's student learns, from the base model on."""
    select: SelectSettings = SelectSettings()
    """Which of the teacher's rows are kept."""
    views: ViewSettings = ViewSettings()
    """How else teachers are shown each row."""
    predict: PredictSettings = PredictSettings()
    """How students predict."""
    ask: PredictSettings = PredictSettings()
    """How the first teacher is asked."""
    budget: dict[str, Any] = Field(default_factory=dict)
    """Budget settings of the student to use instead of the task's, such as ``max_pixels``."""
    read: ReadOptions = ReadOptions()
    """How to read data."""


class DistillRun(DistillSettings):
    """A whole distillation, as a run file says it."""

    labelled: Path
    """Labelled rows."""
    unlabelled: Path
    """Rows without labels."""
    valid: Path
    """Labelled rows that decide which round is the best; none of those that the model will be judged by."""
    out: Path
    """Model folder to write."""
    task: str | None = None
    """A built-in task or YAML file; the base model's own where not given."""
    model: str = "builtin:tiny"
    """The student before it learns: a built-in name, a folder, or a hub id."""
    teacher: str | None = None
    """Who labels in the first round; the student that learned from the labelled rows where not given."""
