"""What every engine is: rows in, predictions out."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Protocol, TypeAlias

from tuyi.data.example import Example
from tuyi.errors import ModelError
from tuyi.predict.prediction import Prediction
from tuyi.task.labels import LabelSet
from tuyi.task.task import Task

__all__ = ["Engine", "SizedRow", "closed_labels"]

SizedRow: TypeAlias = tuple[Example, int]
"""A row, and its tokens with room for the longest label, as :func:`~tuyi.encode.survey.survey` counts them."""


class Engine(Protocol):
    """Labels rows; the run around it reads data, resumes and writes."""

    def predict(self, rows: Iterable[SizedRow]) -> Generator[list[Prediction], None, None]:
        """Predictions as they become ready, each row's exactly once, in any order.

        Closing the iterator early stops what is under way and waits for nothing.
        """
        ...

    def close(self) -> None:
        """Give back processes, memory and connections; safe to call twice."""
        ...


def closed_labels(task: Task) -> LabelSet:
    """The labels of a task whose answer is a label and nothing else.

    Raises:
        ModelError: The answer has free text, which no engine gives yet.
    """
    if task.labels is None or not task.answer.is_plain:
        raise ModelError(f"task {task.name} answers with more than a label; this engine scores labels only")
    return task.labels
