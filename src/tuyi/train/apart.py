"""The tasks of a set trained apart: a model for each, one after the other, in a folder that is used like one model."""

from __future__ import annotations

from array import array
from dataclasses import replace
from typing import Any

from tuyi.encode.encoder import Encoder
from tuyi.encode.store import RowStore
from tuyi.encode.survey import Survey
from tuyi.errors import ConfigError, DataError
from tuyi.model.folder import FILE, FolderInfo, read_info, versions, write_info
from tuyi.task.catalog import TaskSet
from tuyi.task.task import Task
from tuyi.train.claim import RECORD, claim
from tuyi.train.fit import Fitting
from tuyi.train.process import first_process
from tuyi.train.reasons import label_task
from tuyi.train.settings import TrainSettings
from tuyi.train.single import TrainSummary, free_memory, train_single
from tuyi.train.taught import teach

__all__ = ["check_apart", "train_apart"]


def check_apart(tasks: TaskSet) -> None:
    """Make sure that there are tasks to train apart.

    Raises:
        ConfigError: There is a single one, or one whose name cannot be that of a folder.
    """
    names = [task.name for task in tasks]
    if len(names) == 1:
        raise ConfigError(f"train.apart needs several tasks, and {names[0]} is the only one; leave train.apart out")
    if wrong := [name for name in names if name in (".", "..", FILE, RECORD)]:
        raise ConfigError(
            f"train.apart makes a folder for each task, and none can be called {wrong[0]}; rename the task"
        )


def train_apart(given: Fitting, record: dict[str, Any]) -> TrainSummary:
    """Train a model for each task that has rows, and write the folder that holds them.

    All settings, folders and rows are checked before the first one is trained. A member that is finished is passed
    over.

    Args:
        given: The run, with the rows of all tasks.
        record: What it was asked to do, as its ``run.json`` says.

    Raises:
        ConfigError: Fewer than two tasks have rows, or settings that do not fit the rows.
        DataError: Validation rows of a task that has no rows to learn.
        OutputError: A member's folder holds something else, or cannot be written.
        TrainingError: As in :func:`tuyi.train.fit.fit`.
    """
    from rich.console import Console

    members = _members(given)
    teach(given.rows, given.lessons, given.settings)  # what does not fit is said before hours have gone by
    for member in members:
        asked = {"tasks": member.encoder.tasks, "settings": member.settings}
        own = {name: value.model_dump(mode="json") for name, value in asked.items()}
        claim(member.out, {**record, **own}, given.resume)
    console = given.console or Console(quiet=True)
    done: list[TrainSummary] = []
    for number, member in enumerate(members, 1):
        finished = given.resume and (member.out / FILE).exists()
        state = "finished earlier" if finished else f"{len(member.rows)} rows"
        console.print(f"\ntask {number} of {len(members)}, {member.encoder.tasks.name}: {state}", highlight=False)
        done.append(_earlier(member) if finished else train_single(member))
        free_memory()
    summary = _together(given, done)
    if first_process():
        start = given.frontend.info
        info = FolderInfo(
            tasks=TaskSet(name=given.encoder.tasks.name, tasks=tuple(one.encoder.tasks.tasks[0] for one in members)),
            base_model=start.base_model if start else given.frontend.name,
            versions=versions(),
            settings=summary.settings.model_dump(mode="json"),
            scores=summary.scores,
            members={one.encoder.tasks.name: one.out.name for one in members},
        )
        write_info(given.out, info)
    return summary


def _members(given: Fitting) -> list[Fitting]:
    """The runs of the tasks that have rows, in the order of the set; each has a task set of one."""
    tasks, settings = given.encoder.tasks, given.settings
    rows = _by_task(given.rows, given.lessons.tasks)
    valid = _by_task(given.valid, tasks) if given.valid is not None else {}
    if len(rows) == 1:
        raise ConfigError(f"train.apart needs rows of several tasks, all rows are of {next(iter(rows))}; leave it out")
    if lost := [name for name in valid if name not in rows]:
        raise DataError(
            f"{len(valid[lost[0]])} validation rows are of task {lost[0]}, which has no rows to learn from and gets no "
            "model with train.apart; leave them out, or give it rows"
        )
    blind = [name for name in rows if name not in valid]
    if blind and settings.early_stop is not None and given.valid is not None:
        raise ConfigError(f"early_stop needs validation rows of every task, {blind[0]} has none")
    return [
        replace(
            given,
            encoder=_encoder(given, task, tasks),
            lessons=_encoder(given, task, given.lessons.tasks),
            rows=rows[task.name],
            valid=valid.get(task.name),
            settings=_own(settings, task),
            out=given.out / task.name,
        )
        for task in tasks
        if task.name in rows
    ]


def _encoder(given: Fitting, task: Task, tasks: TaskSet) -> Encoder:
    """An encoder of one task, and of the question for its reasons where there is one."""
    own = tuple(one for one in tasks if label_task(one) == task.name)
    return Encoder(given.frontend.tokenizer, given.frontend.spec, TaskSet(name=task.name, tasks=own))


def _by_task(rows: Survey, tasks: TaskSet) -> dict[str, Survey]:
    """The rows of each task that has any, with those that ask for its reasons."""
    found: dict[str, Survey] = {}
    for index, row in enumerate(rows.rows):
        name = label_task(tasks.of(row))
        if name not in found:
            found[name] = Survey(RowStore(), array("l"), array("l"), array("l"), array("d"), ())
        part = found[name]
        part.rows.append(row)
        part.tokens.append(rows.tokens[index])
        part.patches.append(rows.patches[index])
        part.supervised.append(rows.supervised[index])
        part.weights.append(rows.weights[index])
    return found


def _own(settings: TrainSettings, task: Task) -> TrainSettings:
    """What the settings say of one task."""
    weights = settings.class_weights
    if isinstance(weights, dict) and task.labels is not None:
        weights = {label: weight for label, weight in weights.items() if label in task.labels} or None
    return settings.model_copy(update={"apart": False, "class_weights": weights})


def _earlier(member: Fitting) -> TrainSummary:
    """What is known of a member that an earlier call finished."""
    from tuyi.train.progress import last_loss, read_log

    info = read_info(member.out)
    assert info is not None
    settings = TrainSettings.model_validate(info.settings)
    return TrainSummary(
        out=member.out,
        steps=teach(member.rows, member.lessons, settings).plan.steps,
        rows=len(member.rows),
        rows_done=0,
        skipped=(),
        seconds=0.0,
        loss=last_loss(read_log(member.out / "loss.jsonl")),
        scores=info.scores,
        settings=settings,
    )


def _together(given: Fitting, done: list[TrainSummary]) -> TrainSummary:
    """All members' summaries as one."""
    scores = {name: score for one in done for name, score in one.scores.items() if name != "weighted_f1"}
    if means := [one.scores["weighted_f1"] for one in done if one.scores]:
        scores = {"weighted_f1": sum(means) / len(means), **scores}
    filled = done[0].settings.model_copy(update={"apart": True, "class_weights": given.settings.class_weights})
    return TrainSummary(
        out=given.out,
        steps=sum(one.steps for one in done),
        rows=len(given.rows),
        rows_done=sum(one.rows_done for one in done),
        skipped=(*given.rows.skipped, *(given.valid.skipped if given.valid else ())),
        seconds=sum(one.seconds for one in done),
        loss=sum(one.loss for one in done) / len(done),
        scores=scores,
        settings=filled,
    )
