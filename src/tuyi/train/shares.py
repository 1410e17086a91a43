"""What rows are taught where it is not one answer: a distribution over the labels of their task."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tuyi.encode.encoder import Encoder
from tuyi.encode.survey import Survey
from tuyi.errors import ConfigError
from tuyi.task.answer import Free
from tuyi.task.catalog import TaskSet
from tuyi.train.mixing import Answers
from tuyi.train.settings import TrainSettings

__all__ = ["shares_of", "tokens_with_labels"]


def shares_of(answers: Answers, tasks: TaskSet, settings: TrainSettings) -> list[NDArray[np.float32]] | None:
    """The distribution over its task's labels that each row is taught; None where it is the row's label alone.

    Label smoothing takes a share ε of the certainty away and spreads it over all L labels: (1 - ε) * onehot + ε / L.

    Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision" (arXiv 1512.00567), section 7.

    Returns:
        For each row float32, shape (L,), summing to 1; rows of equal task and label share one array.

    Raises:
        ConfigError: A task that has rows and no labels, or answers with more than a label.
    """
    smoothing = settings.label_smoothing
    if not smoothing:
        return None
    tables: dict[int, NDArray[np.float32]] = {}
    for number, task in answers.asked(tasks):
        if task.labels is None or any(isinstance(segment, Free) for segment in task.answer.segments):
            raise ConfigError(
                f"label_smoothing needs tasks that answer with a label alone, and task {task.name} writes freely; "
                "set train.label_smoothing=0, or leave its rows out"
            )
        count = len(task.labels)
        tables[number] = ((1 - smoothing) * np.eye(count) + smoothing / count).astype(np.float32)
    rows = {number: list(table) for number, table in tables.items()}
    return [rows[task][label] for task, label in zip(answers.tasks.tolist(), answers.labels.tolist())]


def tokens_with_labels(rows: Survey, answers: Answers, encoder: Encoder) -> NDArray[np.int64]:
    """Tokens that each row takes up in a pack where all labels of its task stand behind its prompt.

    Returns:
        int64, shape (n,).
    """
    behind = np.zeros(len(encoder.tasks.tasks), np.int64)
    for number, task in answers.asked(encoder.tasks):
        behind[number] = sum(encoder.labels(task).branch_lengths)
    return np.asarray(rows.tokens, np.int64) - np.asarray(rows.supervised, np.int64) + behind[answers.tasks]
