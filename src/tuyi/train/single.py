"""One model trained and written as a folder."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tuyi.model.folder import FolderInfo, versions
from tuyi.train.settings import TrainSettings

if TYPE_CHECKING:
    from tuyi.train.fit import Fitting

__all__ = ["TrainSummary", "free_memory", "train_single"]


@dataclass(frozen=True, slots=True)
class TrainSummary:
    """What a training run did.

    Args:
        out: The model folder.
        steps: Optimizer steps of the whole run.
        rows: Different rows that were trained on.
        rows_done: Rows that this call passed through the model, epochs counted.
        skipped: What is wrong with each row that was left out.
        seconds: Time in the training loop of this call.
        loss: Mean loss of the last tenth of the steps; of tasks trained apart, their mean.
        scores: Scores on the validation rows, if there are any.
        settings: The settings, everything filled in.
    """

    out: Path
    steps: int
    rows: int
    rows_done: int
    skipped: tuple[str, ...]
    seconds: float
    loss: float
    scores: dict[str, float]
    settings: TrainSettings


def train_single(given: Fitting) -> TrainSummary:
    """Train a model on surveyed rows and write its folder.

    Raises:
        ConfigError, TrainingError: As in :func:`tuyi.train.fit.fit`.
        OutputError: The folder cannot be written.
    """
    from tuyi.train.fit import fit
    from tuyi.train.save import save_model
    from tuyi.train.seen import seen

    result = fit(given)
    start = given.frontend.info
    folder = FolderInfo(
        tasks=given.encoder.tasks,
        base_model=start.base_model if start else given.frontend.name,
        versions=versions(),
        settings=result.settings.model_dump(mode="json"),
        scores=result.scores,
        data={"train": seen(given.rows, given.lessons.tasks)}
        | ({"valid": seen(given.valid, given.encoder.tasks)} if given.valid else {}),
    )
    save_model(result.trainer, result.base, given.out, folder)
    return TrainSummary(
        out=given.out,
        steps=result.steps,
        rows=len(given.rows),
        rows_done=result.rows_done,
        skipped=(*given.rows.skipped, *(given.valid.skipped if given.valid else ())),
        seconds=result.seconds,
        loss=result.loss,
        scores=result.scores,
        settings=result.settings,
    )


def free_memory() -> None:
    """Let go of the last run's model on the GPU before the next one is loaded."""
    import torch

    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
