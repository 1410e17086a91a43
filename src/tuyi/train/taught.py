"""What a run teaches: which rows in which step, what each weighs, which answer or distribution over labels it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuyi.encode.encoder import Encoder
from tuyi.encode.survey import Survey
from tuyi.train.mixing import order_of, read_answers, weights_of
from tuyi.train.plan import Plan
from tuyi.train.settings import TrainSettings
from tuyi.train.shares import shares_of, tokens_with_labels

__all__ = ["Taught", "teach"]


@dataclass(frozen=True, slots=True, eq=False)
class Taught:
    """What a run teaches.

    Args:
        plan: Its steps.
        weights: Weight of each row in the loss.
        shares: The distribution over its task's labels that each row is taught; None for its answer alone.
    """

    plan: Plan
    weights: Sequence[float]
    shares: Sequence[NDArray[np.float32]] | None


def teach(rows: Survey, encoder: Encoder, settings: TrainSettings) -> Taught:
    """Work out what a run teaches.

    Raises:
        ConfigError: Sampling, weights or smoothing that do not fit the tasks of the rows.
    """
    answers = read_answers(rows, encoder.tasks)
    shares = shares_of(answers, encoder.tasks, settings)
    plan = Plan(
        rows.tokens if shares is None else tokens_with_labels(rows, answers, encoder).tolist(),
        epochs=settings.epochs,
        seed=settings.seed,
        batch_rows=settings.batch_rows,
        batch_tokens=settings.batch_tokens,
        max_steps=settings.max_steps,
        order=order_of(answers, encoder.tasks, settings),
    )
    return Taught(plan, weights_of(rows, answers, encoder.tasks, settings), shares)
