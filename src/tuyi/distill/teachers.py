"""Teachers: models that are asked for the labels of rows, each in its own words, all for the same labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from tuyi.data.example import Example
from tuyi.data.options import ReadOptions
from tuyi.data.source import scan
from tuyi.distill.views import ViewSettings, smaller, write_shorter
from tuyi.encode.survey import OnBadRow
from tuyi.errors import ConfigError, DataError, TaskError
from tuyi.evaluate.rows import load_predictions
from tuyi.model.tasks import choose_tasks, with_budget
from tuyi.predict.prediction import Prediction, read_run
from tuyi.predict.settings import PredictSettings
from tuyi.task.catalog import TaskSet, parse_tasks
from tuyi.task.labels import LabelSet

__all__ = ["Answers", "Asking", "ById", "Teacher", "ask", "check_asking", "find_teachers"]

ById: TypeAlias = dict[str, Prediction]


@dataclass(frozen=True, slots=True)
class Teacher:
    """A model to ask, or one that has answered.

    Args:
        model: A model folder, hub id or built-in name; or a predictions file.
        tasks: What it is asked, in its own words.
        answered: Whether it is a predictions file.
    """

    model: str
    tasks: TaskSet
    answered: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Asking:
    """How teachers are asked.

    Args:
        settings: Speed, place and engine.
        views: How else they are shown the rows.
        options: How to read the rows.
        on_bad_row: Whether a row that cannot be used stops everything.
        progress, tell: As for :func:`tuyi.predict.run.predict`.
    """

    settings: PredictSettings
    views: ViewSettings
    options: ReadOptions
    on_bad_row: OnBadRow
    progress: Callable[[int, int], None]
    tell: Callable[[str], None]


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What teachers say about rows: predictions by id, by teacher.

    Args:
        plain: Of the rows as they are.
        views: The same by name of the view; a view may have no answer to a row that it shows as it is.
    """

    plain: Mapping[str, ById]
    views: Mapping[str, Mapping[str, ById]]


def find_teachers(
    models: Sequence[str], task: str | TaskSet | None, budget: Mapping[str, Any] | None = None
) -> tuple[TaskSet, list[Teacher]]:
    """The teachers, and the tasks whose labels they give.

    Args:
        models: Model folders, hub ids or built-in names; predictions files of the rows.
        task: Needed for a model that has no task of its own; the first teacher's where not given.
        budget: Budget settings to use instead of each teacher's.

    Raises:
        ConfigError: No teacher, or one named twice.
        TaskError: A teacher that knows other labels, or whose task has none.
    """
    if not models:
        raise ConfigError("labels need a teacher; name a model with --teacher")
    if twice := sorted({model for model in models if models.count(model) > 1}):
        raise ConfigError(f"the teacher {twice[0]} is named twice; to count it more, give it a weight")
    given = choose_tasks("the teacher", None, task) if task is not None else None
    teachers = [_teacher(model, given, budget) for model in models]
    tasks = given or teachers[0].tasks
    for teacher in teachers:
        _check_labels(teacher, tasks)
    return tasks, [_asked_only(teacher, tasks) for teacher in teachers]


def _teacher(model: str, given: TaskSet | None, budget: Mapping[str, Any] | None) -> Teacher:
    from tuyi.model.load import peek

    if not Path(model).is_file():
        info = peek(model)
        own = choose_tasks(model, None, given) if info is None else info.tasks
        return Teacher(model, with_budget(own, budget))
    value = read_run(Path(model)).get("tasks")
    if not isinstance(value, dict) and given is None:
        raise TaskError(
            f"{model} does not say which task was asked, there is no .run.json beside it; name it with --task"
        )
    tasks = parse_tasks(value, f"{model}.run.json") if isinstance(value, dict) else given
    assert tasks is not None
    return Teacher(model, tasks, answered=True)


def _asked_only(teacher: Teacher, tasks: TaskSet) -> Teacher:
    """The teacher with none of the further tasks that it knows: their rows have no business here."""
    wanted = tuple(teacher.tasks[task.name] for task in tasks)
    return replace(teacher, tasks=teacher.tasks.model_copy(update={"tasks": wanted}))


def check_asking(teachers: Sequence[Teacher], *, more: bool, engine: str) -> None:
    """Make sure that teachers can be asked what is wanted.

    Args:
        teachers: Whom.
        more: Whether there is more to ask than the rows themselves: views, or labelled rows.
        engine: Who runs them.

    Raises:
        ConfigError: A predictions file that would have to answer more than it has; several models behind one server.
    """
    if more and (file := next((one.model for one in teachers if one.answered), None)) is not None:
        raise ConfigError(
            f"{file} holds predictions and cannot be asked about views or check rows; leave them out, or name the model"
        )
    if engine == "api" and sum(not one.answered for one in teachers) > 1:
        raise ConfigError(
            "engine api asks one server, which cannot be several teachers; `tuyi predict` with each, and name the "
            "predictions files with --teacher"
        )


def _check_labels(teacher: Teacher, tasks: TaskSet) -> None:
    own = {one.name: one for one in teacher.tasks}
    for task in tasks:
        if task.labels is None:
            raise TaskError(f"task {task.name} is open: it lists no labels that a teacher could give")
        if task.name not in own:
            raise TaskError(f"the teacher {teacher.model} knows the tasks {', '.join(own)}, expected {task.name}")
        labels: LabelSet | None = own[task.name].labels
        if labels is None or set(labels.names) != set(task.labels.names):
            found = set(labels.names) if labels else set()
            odd = sorted(found ^ set(task.labels.names))[0]
            raise TaskError(f"the teacher {teacher.model} knows other labels of {task.name}: {odd!r} is not in both")


def ask(teachers: Sequence[Teacher], data: str | Path, folder: Path, asking: Asking) -> Answers:
    """Every teacher's answer to every row, and to every view of it; what ``folder`` has already is not asked again.

    Args:
        teachers: Whom.
        data: The rows.
        folder: Where the predictions files lie.
        asking: How.

    Raises:
        DataError, ModelError, EngineError, OutputError: As in prediction.
    """
    views: dict[str, dict[str, ById]] = {}
    plain: dict[str, ById] = {}
    asked_views = {name: share for name, share in asking.views.model_dump().items() if share is not None}
    for number, teacher in enumerate(teachers, 1):
        asking.tell(f"teacher {number} of {len(teachers)}: {teacher.model}")
        if teacher.answered:
            plain[teacher.model] = _given(teacher, data, asking.options)
            continue
        plain[teacher.model] = _predict(teacher, data, folder / f"{number}.jsonl", asking)
        for name, share in asked_views.items():
            asking.tell(f"teacher {number}, view {name} {share:g}")
            out = folder / f"{number}-{name}-{share:g}.jsonl"
            views.setdefault(name, {})[teacher.model] = _view(teacher, data, out, name, share, asking)
    return _answered_by_all(plain, views)


def _given(teacher: Teacher, data: str | Path, options: ReadOptions) -> ById:
    """What a predictions file says about these rows."""
    names = {task.name for task in teacher.tasks}
    rows = {row.id for row in scan(data, options) if isinstance(row, Example)}
    answers = load_predictions(Path(teacher.model))
    found = {id: one for id, one in answers.items() if id in rows and one.task in names}
    if not found:
        raise DataError(f"{teacher.model} has no prediction of any row of {data}; is it of other rows?")
    return found


def _view(teacher: Teacher, data: str | Path, out: Path, name: str, share: float, asking: Asking) -> ById:
    if name == "pixels":
        return _predict(replace(teacher, tasks=smaller(teacher.tasks, share)), data, out, asking)
    shorter = out.with_name(f"{out.stem}-rows.jsonl")
    if not write_shorter(data, teacher.tasks, share, shorter, asking.options):
        return {}
    return _predict(teacher, shorter, out, replace(asking, options=ReadOptions()))


def _predict(teacher: Teacher, data: str | Path, out: Path, asking: Asking) -> ById:
    from tuyi.predict.run import predict

    predict(
        teacher.model,
        data,
        out,
        task=teacher.tasks,
        settings=asking.settings,
        options=asking.options,
        on_bad_row=asking.on_bad_row,
        progress=asking.progress,
        tell=asking.tell,
    )
    return load_predictions(out)


def _answered_by_all(plain: dict[str, ById], views: dict[str, dict[str, ById]]) -> Answers:
    """Answers to the rows that every teacher could use, in the order of the first; others are not labelled."""
    first = next(iter(plain.values()))
    ids = [id for id in first if all(id in one for one in plain.values())]

    def kept(answers: Mapping[str, ById]) -> dict[str, ById]:
        common = [id for id in ids if all(id in one for one in answers.values())]
        return {model: {id: one[id] for id in common} for model, one in answers.items()}

    return Answers(kept(plain), {name: kept(answers) for name, answers in views.items()})
