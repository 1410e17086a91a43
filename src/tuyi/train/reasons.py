"""Rows as they are learned: a label from the teacher where there is none, and the reason as a row of its own.

Source: Hsieh et al., "Distilling Step-by-Step!" (arXiv 2305.02301): one model learns the label and the rationale from
the same content under two instructions, and is later asked for the label alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from tuyi.data.example import Example
from tuyi.data.problem import Problem
from tuyi.encode.survey import Survey
from tuyi.errors import ConfigError, DataError, LabelError, TaskError
from tuyi.task.catalog import TaskSet
from tuyi.task.task import Task
from tuyi.train.settings import ReasonSettings

__all__ = ["ReasonTask", "label_task", "lessons", "need_reasons", "with_reasons"]

_PROMPTS = {
    True: "{content}\n请用一句话说明这样分类的理由。",
    False: "{content}\nSay in one sentence why the label that fits is right.",
}
"""How the reason is asked for, in a task with Chinese wording or without."""
_CHINESE = re.compile("[\u4e00-\u9fff]")


class ReasonTask(Task):
    """The question why another task's labels are right; exists while a model is trained."""

    explains: str
    """Name of the other task."""

    @property
    def is_chat(self) -> bool:
        return False


def label_task(task: Task) -> str:
    """Name of the task whose labels a task asks for, or for the reason of."""
    return task.explains if isinstance(task, ReasonTask) else task.name


def with_reasons(tasks: TaskSet, settings: ReasonSettings) -> TaskSet:
    """The tasks, and for each that has labels one that asks for the reason; unchanged where reasons are not learned.

    Raises:
        ConfigError: The answers of a task have the reason inside already, or none has labels.
    """
    if settings.weight is None:
        return tasks
    asking = [_asking(task, settings) for task in tasks if task.labels is not None]
    if not asking:
        raise ConfigError("train.reasons learns why labels are right, and the tasks have none; leave it out")
    if taken := {task.name for task in tasks} & {task.name for task in asking}:
        raise ConfigError(f"train.reasons makes a task called {min(taken)}, and there is one; rename it")
    return TaskSet(name=tasks.name, tasks=(*tasks.tasks, *asking))


def _name(task: Task) -> str:
    return f"{task.name}.reason"


def _asking(task: Task, settings: ReasonSettings) -> Task:
    if task.answer.needs_rationale:
        raise ConfigError(
            f"train.reasons learns reasons beside plain labels, and answers of task {task.name} have them inside; "
            "use answer: label, or leave train.reasons out"
        )
    written = "".join((*task.wording, *(task.labels.names if task.labels else ())))
    return ReasonTask(
        name=_name(task),
        explains=task.name,
        prompt=settings.prompt or _PROMPTS[bool(_CHINESE.search(written))],
        system=task.system,
        answer="open",
        content=task.content,
        turn=task.turn,
        budget=task.budget,
    )


def lessons(rows: Iterable[Example | Problem], tasks: TaskSet, settings: ReasonSettings) -> Iterator[Example | Problem]:
    """Rows as they are learned.

    A row that has soft labels alone is answered with the likeliest of them. Where reasons are learned, each labelled
    row that has one is followed by a row that asks for it.

    Args:
        rows: As ``tuyi.data.scan`` yields them.
        tasks: The tasks that the data asks.
        settings: Whether and how reasons are learned.
    """
    for row in rows:
        if isinstance(row, Problem) or (row.soft is None and settings.weight is None):
            yield row
            continue
        try:
            task = tasks.of(row)
            row = _answered(row, task)
        except TaskError:
            yield row  # the survey says what is wrong
            continue
        except DataError as error:
            yield Problem("label", error.message, replace(row.place, id=row.id))
            continue
        if settings.weight is None:
            yield row
            continue
        row = replace(row, task=task.name)
        yield row
        if row.label and task.labels and row.label in task.labels and row.rationale and row.rationale.strip():
            # the answer is the reason now, and what stands beside it is the label
            yield replace(
                row, id=f"{row.id} (reason)", task=_name(task), label=row.rationale, rationale=row.label, soft=None
            )


def _answered(row: Example, task: Task) -> Example:
    """The row with a label, if anything says one.

    Raises:
        DataError: Soft labels that are none of the task's.
    """
    if row.soft is None:
        return row
    if task.labels is None:
        raise DataError(f"the row has soft labels, and task {task.name} is open: it has no labels; remove them")
    try:
        shares = task.labels.distribution(row.soft)
    except LabelError as error:
        raise DataError(f"soft labels: {error.message.removeprefix('soft labels: ')}") from error
    likeliest = task.labels.names[int(np.argmax(shares))]
    return replace(row, label=likeliest) if row.label is None else row


def need_reasons(rows: Survey, tasks: TaskSet, settings: ReasonSettings) -> None:
    """Make sure that there are reasons where they are to be learned.

    Raises:
        DataError: No row has one.
    """
    if settings.weight is not None and not any(isinstance(tasks.of(row), ReasonTask) for row in rows.rows):
        raise DataError(
            "train.reasons.weight is set, and no labelled row has a rationale to learn; "
            "write some with `tuyi rationalize`, or leave train.reasons out"
        )
