"""What rows are taught where it is not one answer: a distribution over the labels of their task."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tuyi.encode.answer import LabelTokens
from tuyi.encode.encoded import Encoded
from tuyi.encode.encoder import Encoder
from tuyi.encode.survey import Survey
from tuyi.errors import ConfigError
from tuyi.task.answer import Free
from tuyi.task.catalog import TaskSet
from tuyi.task.task import Task
from tuyi.train.mixing import Answers
from tuyi.train.settings import TrainSettings

__all__ = ["Share", "answer_apart", "shares_of", "tokens_with_labels", "whole_answers"]

Numbers = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """What a row is taught about the L labels of its task.

    Args:
        hard: float32, shape (L,): what the cross-entropy of each label weighs.
        teacher: float32, shape (L,), summing to 1: a teacher's distribution at the temperature; None without one.
    """

    hard: Numbers
    teacher: Numbers | None = None


def shares_of(answers: Answers, tasks: TaskSet, settings: TrainSettings) -> list[Share | None] | None:
    """What each row is taught about its task's labels; None for a row, or all of them, that learn their answer alone.

    Label smoothing takes a share ε of the certainty away and spreads it over all L labels: (1 - ε) * onehot + ε / L.
    A row with a teacher's distribution q learns that by 1 - α, and by α the divergence to the teacher, whose
    distribution at temperature T is proportional to q^(1/T).

    Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision" (arXiv 1512.00567), section 7;
    Hinton et al., "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531), section 2.

    Returns:
        For each row its share; rows of equal task and label, without a teacher, have the same.

    Raises:
        ConfigError: A task that has such rows and no labels, or answers with more than a label.
    """
    smoothing, alpha = settings.label_smoothing, settings.soft.weight
    taught = answers.soft if alpha else {}
    if not smoothing and not taught:
        return None
    plain: dict[int, list[Share]] = {}
    hard: dict[int, Numbers] = {}
    for number, task in answers.asked(tasks):
        if smoothing:
            _need_plain(task, "label_smoothing", "set train.label_smoothing=0, or leave its rows out")
        if task.labels is not None:
            count = len(task.labels)
            hard[number] = ((1 - smoothing) * np.eye(count) + smoothing / count).astype(np.float32)
            plain[number] = [Share(row) for row in hard[number]]
    shares: list[Share | None] = [None] * len(answers.tasks)
    for row, (number, label) in enumerate(zip(answers.tasks.tolist(), answers.labels.tolist())):
        if row in taught:
            _need_plain(tasks.tasks[number], "soft labels", "set train.soft.weight=0 to learn its labels alone")
            at_t = (taught[row] / taught[row].max()) ** (1 / settings.soft.temperature)
            shares[row] = Share((1 - alpha) * hard[number][label], (at_t / at_t.sum()).astype(np.float32))
        elif smoothing and not answers.reasons[row]:
            shares[row] = plain[number][label]
    return shares


def _need_plain(task: Task, setting: str, fix: str) -> None:
    if task.labels is None or any(isinstance(segment, Free) for segment in task.answer.segments):
        verb = "need" if setting.endswith("s") else "needs"
        raise ConfigError(
            f"{setting} {verb} tasks that answer with a label alone, and task {task.name} writes freely; {fix}"
        )


def whole_answers(encoder: Encoder, task: Task) -> LabelTokens:
    """All answers of a task that answers with a label alone, what is fixed around the label included."""
    assert task.labels is not None
    names, answers = task.labels.names, encoder.answers(task)
    return LabelTokens(names, tuple(answers.taught(name, None) for name in names))


def answer_apart(row: Encoded) -> tuple[Encoded, LabelTokens]:
    """A row without its answer, and the answer as the only label of a row that is taught about labels."""
    end = len(row) - int(np.argmin(row.supervised[::-1]))
    prompt = replace(row, ids=row.ids[:end], supervised=row.supervised[:end], positions=row.positions[:, :end])
    return prompt, LabelTokens(("",), (tuple(row.ids[end:].tolist()),))


def tokens_with_labels(
    rows: Survey, answers: Answers, encoder: Encoder, shares: list[Share | None]
) -> NDArray[np.int64]:
    """Tokens that each row takes up in a pack where all labels of its task stand behind its prompt.

    Args:
        rows, answers, encoder: Of the run.
        shares: What each row is taught; those without one stand with their answers.

    Returns:
        int64, shape (n,).
    """
    behind = np.zeros(len(encoder.tasks.tasks), np.int64)
    for number, task in answers.asked(encoder.tasks):
        if task.labels is not None and not task.answer.needs_rationale:
            behind[number] = sum(whole_answers(encoder, task).branch_lengths)
    tokens, supervised = np.asarray(rows.tokens, np.int64), np.asarray(rows.supervised, np.int64)
    is_taught = np.asarray([share is not None for share in shares])
    return np.where(is_taught, tokens - supervised + behind[answers.tasks], tokens)
