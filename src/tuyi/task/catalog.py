"""Sets of tasks: found by name or file, and matched to rows."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from tuyi.config import apply_overrides, explain_errors
from tuyi.data.example import Example
from tuyi.errors import TaskError
from tuyi.task.task import Task

__all__ = ["TaskSet", "builtin_names", "load_tasks"]


class TaskSet(BaseModel):
    """One or several tasks that a model answers; a row finds its own by wording or name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    tasks: tuple[Task, ...]

    @model_validator(mode="after")
    def _distinct(self) -> TaskSet:
        names = [task.name for task in self.tasks]
        if not names:
            raise ValueError("a task set needs at least one task")
        if len(set(names)) != len(names):
            raise ValueError(f"two tasks have the same name: {', '.join(names)}")
        return self

    def __iter__(self) -> Iterator[Task]:  # type: ignore[override]
        return iter(self.tasks)

    def __getitem__(self, name: str) -> Task:
        for task in self.tasks:
            if task.name == name:
                return task
        raise TaskError(f"expected one of the tasks {', '.join(task.name for task in self.tasks)}, found {name!r}")

    def of(self, example: Example) -> Task:
        """The task that a row asks.

        Raises:
            TaskError: The row matches none or several of the tasks.
        """
        if len(self.tasks) == 1 and example.task is None:
            return self.tasks[0]
        found = [task for task in self.tasks if task.recognises(example)]
        if len(found) == 1:
            return found[0]
        names = ", ".join(task.name for task in self.tasks)
        place = str(example.place) or f"id {example.id}"
        if example.task is not None:
            raise TaskError(f"{place}: the row names task {example.task!r}, expected one of {names}")
        if found:
            both = ", ".join(task.name for task in found)
            raise TaskError(f"{place}: the row matches several tasks ({both}); make their `recognise` texts distinct")
        raise TaskError(
            f"{place}: the row matches none of the tasks {names}: none of their `recognise` texts is in it; "
            "add one, name the task in a `task` column, or choose another --task"
        )


def builtin_names() -> list[str]:
    """Names of the task sets that ship with tuyi."""
    return sorted(item.name.removesuffix(".yaml") for item in _builtin().iterdir() if item.name.endswith(".yaml"))


def load_tasks(name: str | Path, overrides: list[str] | None = None) -> TaskSet:
    """Load a task set.

    Args:
        name: A built-in name such as ``www2025``, ``www2025/www2025-intent`` for one task of a set, or a YAML file.
        overrides: ``KEY=VALUE`` settings applied to every task, such as ``budget.max_pixels=200704``.

    Raises:
        TaskError: Nothing of that name, or the file is wrong; lists every problem with its dotted path.
    """
    value, source = _read(str(name))
    for task in value["tasks"] if isinstance(value["tasks"], list) else []:
        apply_overrides(task, overrides or [])
    return parse_tasks(value, source)


def parse_tasks(value: dict[str, Any], source: str) -> TaskSet:
    """A task set from plain data; ``source`` stands in messages."""
    try:
        return TaskSet.model_validate(value)
    except ValidationError as error:
        raise TaskError(explain_errors(error, source, TaskSet)) from error


def _read(name: str) -> tuple[dict[str, Any], str]:
    """A task set as plain data with ``name`` and ``tasks``, unchecked, and what it is called in messages."""
    text, source, only = _find(name)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise TaskError(f"{source}: not YAML: {error}") from error
    if not isinstance(value, dict):
        raise TaskError(f"{source}: expected a mapping with name, labels, prompt, …; found {type(value).__name__}")
    _check_extends(value, source)
    if "extends" in value:
        value = _extended(value, source)
    if "tasks" not in value:
        value = {"name": value.get("name", Path(source).stem), "tasks": [value]}
    if only is not None:
        value = {"name": only, "tasks": [task for task in value["tasks"] if task.get("name") == only]}
        if not value["tasks"]:
            raise TaskError(f"{source} has no task {only!r}")
    return value, source


def _check_extends(value: dict[str, Any], source: str) -> None:
    tasks = value.get("tasks")
    for task in tasks if isinstance(tasks, list) else []:
        if isinstance(task, dict) and "extends" in task:
            raise TaskError(
                f"{source}: extends: expected once, at the top of the file, as all of `tasks` extend one set; found in "
                f"task {task.get('name')!r}: {task['extends']!r}"
            )


def _extended(value: dict[str, Any], source: str) -> dict[str, Any]:
    """A task, or each task of a set, with the fields that it leaves out taken from the built-in one it extends."""
    base = value["extends"]
    if not isinstance(base, str) or base.partition("/")[0] not in builtin_names():
        known = ", ".join(builtin_names())
        raise TaskError(f"{source}: extends: expected a built-in set ({known}) or one of its tasks, found {base!r}")
    given = {key: item for key, item in value.items() if key != "extends"}
    extended = {task["name"]: task for task in _read(base)[0]["tasks"]}
    names = ", ".join(extended)
    if "tasks" not in given:
        if len(extended) > 1:
            raise TaskError(f"{source}: extends: {base} has the tasks {names}; name one of them, such as {base}/NAME")
        (only,) = extended.values()
        return {**only, **given}
    tasks = given["tasks"]
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        return given
    if unknown := [task.get("name") for task in tasks if str(task.get("name")) not in extended]:
        raise TaskError(f"{source}: extends: {base} has the tasks {names}, found {unknown[0]!r}")
    return {**given, "tasks": [{**extended[str(task["name"])], **task} for task in tasks]}


def _builtin() -> Any:
    return resources.files("tuyi.task").joinpath("builtin")


def _find(name: str) -> tuple[str, str, str | None]:
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        try:
            return path.read_text(encoding="utf-8-sig"), name, None
        except FileNotFoundError as error:
            raise TaskError(
                f"task file {name} does not exist; `tuyi task new {name}` writes one to start from"
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise TaskError(f"task file {name} cannot be read as UTF-8: {error}") from error
    group, _, only = name.partition("/")
    if group in builtin_names():
        return _builtin().joinpath(f"{group}.yaml").read_text(encoding="utf-8"), group, only or None
    raise TaskError(f"task {name!r} is neither built in ({', '.join(builtin_names())}) nor a .yaml file")
