"""What an audit asks, and of whom."""

from __future__ import annotations

import json
from pathlib import Path

from tuyi.errors import ModelError, TaskError
from tuyi.model.tasks import choose_tasks
from tuyi.predict.prediction import read_run
from tuyi.task.catalog import TaskSet, load_tasks, parse_tasks
from tuyi.train.claim import RECORD as TRAINED

__all__ = ["RECORD", "audited_tasks", "check_not_learned", "tasks_to_ask"]

RECORD = "audit.json"
"""What was asked and found, in an audit's folder."""


def tasks_to_ask(task: str | TaskSet | None, model: str, predictions: Path | None) -> TaskSet:
    """What is asked: of a model with tasks of its own just that, of any other the label alone, without reasons.

    Args:
        task: A task set, built-in name or YAML file, where one is named.
        model: What the folds' models start from.
        predictions: Predictions that are there already; they count instead of the model.

    Raises:
        TaskError: Nobody says what is asked, or it has no labels.
    """
    from tuyi.model.load import peek

    if predictions is not None:
        recorded = read_run(predictions).get("tasks")
        if isinstance(task, str):
            found = load_tasks(task)
        elif task is not None:
            found = task
        elif isinstance(recorded, dict):
            found = parse_tasks(recorded, f"{predictions}.run.json")
        else:
            raise TaskError(f"nothing beside {predictions} says which tasks were asked; name them with --task")
    else:
        info = peek(model)
        found = choose_tasks(model, info, task)
        if info is None:
            value = found.model_dump(mode="json")
            for one in value["tasks"]:
                one["answer"] = "label" if one["labels"] else one["answer"]
            found = parse_tasks(value, "task")
    if all(one.labels is None for one in found):
        raise TaskError(f"task {found.name} is open: it has no labels that could be wrong")
    return found


def audited_tasks(corrections: str | Path, task: str | TaskSet | None, model: str | None = None) -> TaskSet:
    """The tasks that a corrections file is of.

    Args:
        corrections: The file.
        task: They, where they are named.
        model: Else those of the audit beside the file, else this model's own.

    Raises:
        TaskError: None is given, none lies beside the file, and the model has none.
    """
    from tuyi.model.load import peek

    if task is not None:
        return load_tasks(task) if isinstance(task, str) else task
    record = Path(corrections).with_name(RECORD)
    try:
        value = json.loads(record.read_text(encoding="utf-8"))["asked"]["tasks"]
    except (OSError, ValueError, KeyError) as error:
        info = peek(model) if model is not None else None
        if info is not None:
            return info.tasks
        raise TaskError(
            f"no {RECORD} of an audit lies beside {corrections}, which would say the labels; name the task with "
            "--task, or a model that has it with --model"
        ) from error
    return parse_tasks(value, str(record))


def check_not_learned(model: str, predictions: Path | None, data: str | Path) -> None:
    """Refuse a model that has seen the rows: it would repeat the labels that it learned.

    Raises:
        ModelError: Its folder says that it was trained on ``data``.
    """

    asked = Path(str(read_run(predictions).get("model", "")) if predictions is not None else model)
    try:
        learned = json.loads((asked / TRAINED).read_text(encoding="utf-8")).get("data")
    except (OSError, ValueError):
        return
    if learned is not None and Path(learned).resolve() == Path(data).resolve():
        raise ModelError(
            f"{asked} was trained on {data} and would repeat the labels that it learned; start the folds' models from "
            "what it was trained from, with --model"
        )
