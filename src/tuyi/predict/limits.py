"""Limits on what a row may cost: held before a run starts, looked at again in what it wrote."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tuyi.encode.encoder import Encoder
from tuyi.errors import ConfigError, EngineError
from tuyi.predict.prediction import Prediction
from tuyi.predict.settings import PredictSettings
from tuyi.task.answer import AnswerFormat, Free, Segment
from tuyi.task.catalog import TaskSet
from tuyi.task.task import Task

__all__ = ["Cost", "cost_of", "keep_limits", "most_calls"]

_SCORING = ("local", "ray")  # engines that write nothing where an answer has no free text


@dataclass(frozen=True, slots=True)
class Cost:
    """What the dearest rows of a predictions file cost.

    Args:
        calls, output_tokens: The largest of any row.
    """

    calls: int
    output_tokens: int


def keep_limits(tasks: TaskSet, encoder: Encoder, settings: PredictSettings) -> TaskSet:
    """The tasks with their free text shortened so that no answer can have more than ``max_output_tokens``.

    Raises:
        ConfigError: What stands around the free text alone is longer, or an answer may take more than ``max_calls``.
    """
    for task in tasks:
        calls = most_calls(task, settings)
        if settings.max_calls is not None and calls > settings.max_calls:
            hint = "; lower predict.api.answer_retries" if settings.engine == "api" else ""
            raise ConfigError(
                f"predict.max_calls is {settings.max_calls}, and an answer of task {task.name} may take {calls} calls "
                f"of the engine {settings.engine}{hint}"
            )
    limit = settings.max_output_tokens
    if limit is None:
        return tasks
    kept = tuple(_shortened(task, encoder.answers(task).most, limit, settings) for task in tasks)
    return tasks.model_copy(update={"tasks": kept})


def most_calls(task: Task, settings: PredictSettings) -> int:
    """The most calls that a row of a task can take.

    This machine and Ray let a row pass the model once and go on from there. Engines outside this process are asked once
    more for what follows free text that came to its limit, and a server also after an answer of another form.
    """
    if settings.engine in _SCORING:
        return 1
    free = sum(isinstance(segment, Free) for segment in task.answer.segments)
    tries = 1 + settings.api.answer_retries if settings.engine == "api" else 1
    return (1 + free) * tries


def _shortened(task: Task, most: int, limit: int, settings: PredictSettings) -> Task:
    if most <= limit or (not task.answer.has_free and settings.engine in _SCORING):
        return task
    written = sum(segment.max_tokens for segment in task.answer.segments if isinstance(segment, Free))
    left = limit - (most - written)
    frees = sum(isinstance(segment, Free) for segment in task.answer.segments)
    if left < frees or not frees:
        raise ConfigError(
            f"predict.max_output_tokens is {limit}, and an answer of task {task.name} has {most - written} tokens "
            "beside its free text (longest label, fixed text, terminator)"
        )
    segments: list[Segment] = []
    for segment in task.answer.segments:
        if isinstance(segment, Free):
            share = min(max(1, segment.max_tokens * left // written), left - frees + 1)
            left, written, frees = left - share, written - segment.max_tokens, frees - 1
            segments.append(segment.model_copy(update={"max_tokens": share}))
        else:
            segments.append(segment)
    return task.model_copy(update={"answer": AnswerFormat(segments=tuple(segments))})


def cost_of(predictions: Iterable[Prediction], settings: PredictSettings) -> Cost:
    """What the dearest rows cost.

    Raises:
        EngineError: A row cost more than the limits allow.
    """
    most = {"calls": 0, "output_tokens": 0}
    limits = {"calls": settings.max_calls, "output_tokens": settings.max_output_tokens}
    for one in predictions:
        for key, limit in limits.items():
            found = one.notes.get(key, 0)
            if limit is not None and found > limit:
                raise EngineError(
                    f"row {one.id!r} took {found} {key.replace('_', ' ')}, predict.max_{key} is {limit}; "
                    "the predictions are written, this one and maybe others beyond the limit"
                )
            most[key] = max(most[key], found)
    return Cost(**most)
