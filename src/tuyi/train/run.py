"""`tuyi train`: rows, a task and a model to a model folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from tuyi.data.example import Example, Text
from tuyi.data.options import ReadOptions
from tuyi.data.problem import Problem
from tuyi.data.source import scan
from tuyi.encode.encoder import Encoder
from tuyi.encode.survey import OnBadRow, Survey, survey
from tuyi.errors import ConfigError, DataError, TuyiError
from tuyi.model.folder import need_one_model
from tuyi.model.tasks import choose_tasks, with_budget
from tuyi.model.tiny import NAMES
from tuyi.task.answer import AnswerFormat, Choice
from tuyi.task.catalog import TaskSet
from tuyi.train.claim import claim, release
from tuyi.train.reasons import ReasonTask, lessons, need_reasons, with_reasons
from tuyi.train.settings import TrainSettings
from tuyi.train.single import TrainSummary, train_single

__all__ = ["TrainSummary", "train"]

_TOKENIZER_ROWS = 4000


def train(
    data: str | Path,
    out: str | Path,
    *,
    task: str | TaskSet | None = None,
    model: str = "builtin:tiny",
    valid: str | Path | None = None,
    settings: TrainSettings | None = None,
    budget: Mapping[str, Any] | None = None,
    options: ReadOptions | None = None,
    on_bad_row: OnBadRow = "stop",
    resume: bool = False,
    console: Any = None,
) -> TrainSummary:
    """Fine-tune a model on labelled rows and write it as a model folder; with ``settings.apart`` one for each task.

    Every row is looked at before the weights are loaded. Under ``torchrun`` each process calls this alike.

    Args:
        data: Anything that ``tuyi.read`` reads.
        out: The model folder to write; checkpoints, loss log and curve lie in it too.
        task: A task set, built-in name or YAML file; not needed where ``model`` brings its own.
        model: A built-in name, a local folder, or a hub id.
        valid: Labelled rows to score during training.
        settings: How to train.
        budget: Budget settings to use instead of the task's, such as ``max_pixels``.
        options: How to read ``data`` and ``valid``.
        on_bad_row: Whether one bad row stops the run, or is left out and named in the summary.
        resume: Go on from the newest whole checkpoint in ``out``.
        console: A rich console for progress; none to stay silent.

    Raises:
        DataError: Rows that cannot be used, all counted.
        TaskError: No task, or another one than the model was taught.
        ModelError: The model cannot be loaded.
        OutputError: ``out`` is taken, or holds another run.
        TrainingError: The loss stopped being a number.
    """
    from tuyi.model.load import load_frontend, peek
    from tuyi.model.quiet import no_progress_bars
    from tuyi.train.apart import check_apart, train_apart
    from tuyi.train.fit import Fitting

    settings, out = settings or TrainSettings(), Path(out)
    info = peek(model)
    need_one_model(model, info)
    tasks = with_budget(choose_tasks(model, info, task), budget)
    if settings.apart:
        check_apart(tasks)
    taught = with_reasons(tasks, settings.reasons)
    record = {
        "data": str(data),
        "valid": str(valid) if valid else None,
        "model": model,
        "tasks": tasks.model_dump(mode="json"),
        "settings": settings.model_dump(mode="json"),
    }
    claim(out, record, resume)
    try:
        texts = _texts(scan(data, options), taught) if model in NAMES else ()
        frontend = load_frontend(model, texts)
        encoder, learned = (Encoder(frontend.tokenizer, frontend.spec, one) for one in (tasks, taught))
        rows = _look(lessons(scan(data, options), tasks, settings.reasons), learned, on_bad_row, data)
        need_reasons(rows, taught, settings.reasons)
        checked = None
        if valid:
            if any(one.labels is None for one in tasks):
                raise ConfigError("validation scores labels, and an open task has none; leave --valid out")
            labelled = Encoder(frontend.tokenizer, frontend.spec, _with_labels_alone(tasks))
            checked = _look(scan(valid, options), labelled, on_bad_row, valid)
        given = Fitting(frontend, encoder, learned, rows, checked, settings, out, resume, console)
        with no_progress_bars():
            return train_apart(given, record) if settings.apart else train_single(given)
    except TuyiError:
        release(out)
        raise


def _look(rows: Iterable[Example | Problem], encoder: Encoder, on_bad_row: OnBadRow, name: object) -> Survey:
    found = survey(rows, encoder, labelled=True, on_bad_row=on_bad_row)
    if not len(found):
        raise DataError(f"{name} has no row that can be used; `tuyi check {name}` says why")
    return found


def _with_labels_alone(tasks: TaskSet) -> TaskSet:
    """The same tasks without reasons: rows that are only scored need none."""
    plain = AnswerFormat(segments=(Choice(),))
    return tasks.model_copy(update={"tasks": tuple(one.model_copy(update={"answer": plain}) for one in tasks)})


def _texts(rows: Iterable[Example | Problem], tasks: TaskSet) -> Iterator[str]:
    """What a built-in model's tokenizer is learned from."""
    for task in tasks:
        yield from task.wording
        yield from task.labels.names if task.labels else ()
    explained = any(task.answer.needs_rationale or isinstance(task, ReasonTask) for task in tasks)
    for row in islice((row for row in rows if isinstance(row, Example)), _TOKENIZER_ROWS):
        yield from (part.text for part in row.parts if isinstance(part, Text))
        yield row.label or ""
        if explained:
            yield row.rationale or ""
