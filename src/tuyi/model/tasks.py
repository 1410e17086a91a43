"""Which tasks a model is asked: its own, with the budget as it is wanted now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tuyi.errors import TaskError
from tuyi.model.folder import FolderInfo
from tuyi.task.catalog import TaskSet, load_tasks, parse_tasks

__all__ = ["choose_tasks", "with_budget"]


def choose_tasks(model: str, info: FolderInfo | None, task: str | TaskSet | None) -> TaskSet:
    """The tasks to ask: the model's own; a given one must be among them.

    Raises:
        TaskError: The model has another task, or none and none is given.
    """
    given = load_tasks(task) if isinstance(task, str) else task
    if info is None:
        if given is None:
            raise TaskError(
                f"{model} has no task of its own (no tuyi.json in it); say which labels to choose from with --task"
            )
        return given
    if given is None:
        return info.tasks
    own = {one.name: one for one in info.tasks}
    for one in given:
        if one.name not in own:
            raise TaskError(
                f"{model} was taught {', '.join(own)}, --task says {one.name}; "
                "leave --task out to ask what it was taught"
            )
        taught = own[one.name]
        if one.labels != taught.labels or one.answer != taught.answer:
            raise TaskError(
                f"{model} was taught {one.name} with other labels or another answer format than --task says; "
                "leave --task out to ask what it was taught"
            )
    return given


def with_budget(tasks: TaskSet, budget: Mapping[str, Any] | None) -> TaskSet:
    """The tasks with some of their budget settings replaced.

    Raises:
        TaskError: An unknown or wrong budget setting.
    """
    if not budget:
        return tasks
    value = tasks.model_dump(mode="json")
    for one in value["tasks"]:
        one["budget"].update(budget)
    return parse_tasks(value, "budget")
