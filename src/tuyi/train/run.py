"""`tuyi train`: rows, a task and a model to a model folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tuyi.data.example import Example, Text
from tuyi.data.options import ReadOptions
from tuyi.data.problem import Problem
from tuyi.data.source import scan
from tuyi.encode.encoder import Encoder
from tuyi.encode.survey import OnBadRow, Survey, survey
from tuyi.errors import ConfigError, DataError, OutputError
from tuyi.model.folder import FILE, FolderInfo, versions
from tuyi.model.tasks import choose_tasks, with_budget
from tuyi.model.tiny import NAMES
from tuyi.task.catalog import TaskSet
from tuyi.train.settings import TrainSettings

__all__ = ["TrainSummary", "train"]

_RECORD = "run.json"
_TOKENIZER_ROWS = 4000


@dataclass(frozen=True, slots=True)
class TrainSummary:
    """What a training run did.

    Args:
        out: The model folder.
        steps: Optimizer steps of the whole run.
        rows: Different rows that were trained on.
        rows_done: Rows that this call passed through the model, epochs counted.
        skipped: What is wrong with each row that was left out.
        seconds: Time in the training loop of this call.
        loss: Mean loss of the last tenth of the steps.
        scores: Scores on the validation rows, if there are any.
        settings: The settings, everything filled in.
    """

    out: Path
    steps: int
    rows: int
    rows_done: int
    skipped: tuple[str, ...]
    seconds: float
    loss: float
    scores: dict[str, float]
    settings: TrainSettings


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
    """Fine-tune a model on labelled rows and write it as a model folder.

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
    from tuyi.train.fit import Fitting, fit
    from tuyi.train.save import save_model

    settings, out = settings or TrainSettings(), Path(out)
    info = peek(model)
    tasks = with_budget(choose_tasks(model, info, task), budget)
    record = {
        "data": str(data),
        "valid": str(valid) if valid else None,
        "model": model,
        "tasks": tasks.model_dump(mode="json"),
    }
    _claim(out, record, settings, resume)
    texts = _texts(scan(data, options), tasks) if model in NAMES else ()
    frontend = load_frontend(model, texts)
    encoder = Encoder(frontend.tokenizer, frontend.spec, tasks)
    rows = _look(scan(data, options), encoder, on_bad_row, data)
    checked = _look(scan(valid, options), encoder, on_bad_row, valid) if valid else None
    if checked is not None and any(not one.answer.is_plain for one in tasks):
        raise ConfigError("validation by label scoring needs tasks that answer with a label alone; leave --valid out")
    with no_progress_bars():
        result = fit(Fitting(frontend, encoder, rows, checked, settings, out, resume, console))
        folder = FolderInfo(
            tasks=tasks,
            base_model=info.base_model if info else model,
            versions=versions(),
            settings=result.settings.model_dump(mode="json"),
            scores=result.scores,
        )
        save_model(result.trainer, result.base, out, folder)
    return TrainSummary(
        out=out,
        steps=result.steps,
        rows=len(rows),
        rows_done=result.rows_done,
        skipped=(*rows.skipped, *(checked.skipped if checked else ())),
        seconds=result.seconds,
        loss=result.loss,
        scores=result.scores,
        settings=result.settings,
    )


def _look(rows: Iterable[Example | Problem], encoder: Encoder, on_bad_row: OnBadRow, name: object) -> Survey:
    found = survey(rows, encoder, labelled=True, on_bad_row=on_bad_row)
    if not len(found):
        raise DataError(f"{name} has no row that can be used; `tuyi check {name}` says why")
    return found


def _claim(out: Path, record: dict[str, Any], settings: TrainSettings, resume: bool) -> None:
    """Take ``out`` for this run, or make sure that the run in it is this one.

    Raises:
        OutputError: ``out`` is taken, or holds another run.
    """
    from tuyi.train.process import first_process

    whole = {**record, "settings": settings.model_dump(mode="json")}
    file = out / _RECORD
    if resume and file.exists():
        earlier = json.loads(file.read_text(encoding="utf-8"))
        for key in whole:
            if earlier.get(key) != whole[key]:
                raise OutputError(f"{out} holds another run: {_difference(key, earlier.get(key), whole[key])}")
        return
    if not first_process():
        return
    if not resume and (file.exists() or (out / FILE).exists()):
        raise OutputError(f"{out} holds a run already; pass --resume to go on with it, or choose another --out")
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; expected a folder to write the model into")
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(whole, ensure_ascii=False, indent=1), encoding="utf-8")


def _difference(key: str, earlier: Any, now: Any) -> str:
    if isinstance(earlier, dict) and isinstance(now, dict):
        for name in sorted(earlier.keys() | now.keys()):
            if earlier.get(name) != now.get(name):
                return _difference(f"{key}.{name}", earlier.get(name), now.get(name))
    return f"its {key} is {str(earlier)[:80]!r}, this run's is {str(now)[:80]!r}; choose another --out"


def _texts(rows: Iterable[Example | Problem], tasks: TaskSet) -> Iterator[str]:
    """What a built-in model's tokenizer is learned from."""
    for task in tasks:
        yield from task.wording
        yield from task.labels.names if task.labels else ()
    for row in islice((row for row in rows if isinstance(row, Example)), _TOKENIZER_ROWS):
        yield from (part.text for part in row.parts if isinstance(part, Text))
        yield row.label or ""
