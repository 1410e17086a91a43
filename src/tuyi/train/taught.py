"""What a run teaches: which rows in which step, what each weighs, which answer or distribution over labels it has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tuyi.encode.encoder import Encoder
from tuyi.encode.survey import Survey
from tuyi.train.mixing import Answers, order_of, read_answers, weights_of, weights_with_reasons
from tuyi.train.plan import Plan
from tuyi.train.settings import TrainSettings
from tuyi.train.shares import Share, shares_of, tokens_with_labels

__all__ = ["Taught", "teach"]


@dataclass(frozen=True, slots=True, eq=False)
class Taught:
    """What a run teaches.

    Args:
        plan: Its steps.
        weights: Weight of each row in the loss.
        shares: What each row is taught about its task's labels; None for its answer alone.
        told: Lines that say what is learned beside labels.
    """

    plan: Plan
    weights: Sequence[float]
    shares: Sequence[Share | None] | None
    told: tuple[str, ...] = ()


def teach(rows: Survey, encoder: Encoder, settings: TrainSettings) -> Taught:
    """Work out what a run teaches.

    Raises:
        ConfigError: Sampling, weights or smoothing that do not fit the tasks of the rows.
    """
    answers = read_answers(rows, encoder.tasks)
    shares = shares_of(answers, encoder.tasks, settings)
    plan = Plan(
        rows.tokens if shares is None else tokens_with_labels(rows, answers, encoder, shares).tolist(),
        epochs=settings.epochs,
        seed=settings.seed,
        batch_rows=settings.batch_rows,
        batch_tokens=settings.batch_tokens,
        max_steps=settings.max_steps,
        order=order_of(answers, encoder.tasks, settings),
    )
    weights = weights_of(rows, answers, encoder.tasks, settings)
    weights = weights_with_reasons(weights, rows, answers, encoder, settings.reasons.weight)
    return Taught(plan, weights, shares, tuple(_told(answers, settings)))


def _told(answers: Answers, settings: TrainSettings) -> Iterator[str]:
    plain = int((~answers.reasons).sum())
    if answers.soft:
        soft = settings.soft
        how = f"learned by {soft.weight:g} at temperature {soft.temperature:g}" if soft.weight else "not learned"
        yield f"{len(answers.soft)} of {plain} rows have soft labels, {how}"
    if answers.reasons.any():
        yield f"{int(answers.reasons.sum())} of {plain} rows have a reason, which counts {settings.reasons.weight:g}"
