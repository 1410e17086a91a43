"""What teachers say together: their probabilities calibrated and averaged, a candidate for each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from tuyi.distill.select import Candidate
from tuyi.distill.teachers import Answers, ById
from tuyi.evaluate.combine import combine
from tuyi.predict.calibrated import normalise
from tuyi.predict.prediction import Prediction
from tuyi.task.catalog import TaskSet

__all__ = ["average", "candidates", "recalibrated"]


def recalibrated(answers: Answers, temperatures: Mapping[str, Mapping[str, float]]) -> Answers:
    """The answers with probabilities at other temperatures.

    Args:
        answers: As asked.
        temperatures: By teacher and task; where there is none, probabilities stay as they are.
    """

    def of(model: str, one: Prediction) -> Prediction:
        temperature = temperatures.get(model, {}).get(one.task)
        if temperature is None or not one.logprobs:
            return one
        chances = normalise(np.array(list(one.logprobs.values()), np.float32), temperature)
        return replace(one, probabilities=dict(zip(one.logprobs, map(float, chances))))

    def all_of(answered: Mapping[str, ById]) -> dict[str, ById]:
        return {model: {id: of(model, one) for id, one in rows.items()} for model, rows in answered.items()}

    return Answers(all_of(answers.plain), {name: all_of(one) for name, one in answers.views.items()})


def average(answered: Mapping[str, ById], tasks: TaskSet, weights: Sequence[float] | None) -> ById:
    """One prediction a row: the weighted mean of the teachers' probabilities.

    A teacher that gives none for a row counts as certain of its label.
    """
    labels = {task.name: task.labels.names for task in tasks if task.labels is not None}

    def spread(one: Prediction) -> Prediction:
        if one.probabilities:
            return one
        certain = {name: float(name == one.label) for name in labels[one.task]}
        return replace(one, probabilities=certain, logprobs=certain)

    spread_all = {model: {id: spread(one) for id, one in rows.items()} for model, rows in answered.items()}
    if len(spread_all) == 1:
        return next(iter(spread_all.values()))
    return combine(spread_all, weights=weights)


def candidates(answers: Answers, tasks: TaskSet, weights: Sequence[float] | None) -> list[Candidate]:
    """What the teachers together say about each row, views beside it."""
    seen = {name: average(answered, tasks, weights) for name, answered in answers.views.items()}
    found = []
    for id, one in average(answers.plain, tasks, weights).items():
        said = [rows[id] for rows in answers.plain.values()]
        reasons = [other.rationale for other in said if other.label == one.label and other.rationale]
        found.append(
            Candidate(
                id=id,
                task=one.task,
                label=one.label,
                confidence=one.probabilities[one.label],
                soft=one.probabilities if any(other.probabilities for other in said) else None,
                votes=tuple(other.label for other in said),
                views={name: rows[id].label for name, rows in seen.items() if id in rows},
                rationale=reasons[0] if reasons else None,
            )
        )
    return found
