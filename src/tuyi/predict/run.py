"""`tuyi predict`: a model folder and data to a predictions file, each id exactly once."""

from __future__ import annotations

import json
import os
import reprlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from tuyi.config import Settings
from tuyi.data.options import ReadOptions
from tuyi.data.source import scan
from tuyi.encode.encoder import Encoder
from tuyi.encode.survey import OnBadRow, Survey, survey
from tuyi.errors import OutputError, TaskError
from tuyi.model.folder import FolderInfo, versions
from tuyi.predict.prediction import Prediction, read_predictions, read_run, run_file
from tuyi.task.catalog import TaskSet, load_tasks, parse_tasks

__all__ = ["PredictRun", "PredictSettings", "PredictSummary", "choose_tasks", "predict", "with_budget"]


class PredictSettings(Settings):
    """How to predict; what to ask is the model's own task."""

    pack_tokens: int = Field(default=16384, gt=0)
    """Most tokens that pass the model together."""
    workers: int = Field(default=max(2, min(12, (os.cpu_count() or 2) - 2)), gt=0)
    """Threads that read pictures ahead of the model."""
    device: str | None = None
    """Torch device; the first GPU where there is one, else the CPU."""
    dtype: str | None = Field(default=None, pattern="^(bfloat16|float32)$")
    """Precision; bfloat16 on a GPU, float32 on a CPU where not given."""


class PredictRun(Settings):
    """What ``--set`` and ``--read`` can change of a prediction run."""

    predict: PredictSettings = PredictSettings()
    """How to predict."""
    budget: dict[str, Any] = Field(default_factory=dict)
    """Budget settings to use instead of the model's, such as ``max_pixels``."""
    read: ReadOptions = ReadOptions()
    """How to read the data."""


@dataclass(frozen=True, slots=True)
class PredictSummary:
    """What a prediction run did.

    Args:
        out: The predictions file.
        tasks: The tasks that were asked.
        rows: Predictions it holds.
        resumed: How many of them an earlier run had made.
        shortened: Rows that had to give something up to fit the token budget, of those made now.
        skipped: What is wrong with each row that was left out.
        seconds: Time spent predicting, model loading not counted.
    """

    out: Path
    tasks: TaskSet
    rows: int
    resumed: int
    shortened: int
    skipped: tuple[str, ...]
    seconds: float


def predict(
    model: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    task: str | TaskSet | None = None,
    settings: PredictSettings | None = None,
    budget: Mapping[str, Any] | None = None,
    options: ReadOptions | None = None,
    on_bad_row: OnBadRow = "stop",
    progress: Callable[[int, int], None] = lambda done, total: None,
    tell: Callable[[str], None] = lambda line: None,
) -> PredictSummary:
    """Label every row of a data set by exact scoring of its task's labels.

    Every row is looked at before the model is loaded. Predictions are appended to ``out`` as they are made; a run
    that was stopped goes on where it was when it is started again.

    Args:
        model: A model folder, hub id or built-in name.
        data: Anything that ``tuyi.read`` reads; labels in it are not looked at.
        out: The JSONL file to write; ``out`` + ``.run.json`` beside it says how it was made.
        task: Needed where the model has no task of its own; a task set, built-in name or YAML file.
        settings: Speed and place, nothing that changes answers but precision.
        budget: Budget settings to use instead of the model's, such as ``max_pixels``.
        options: How to read ``data``.
        on_bad_row: Whether one bad row stops the run, or is left out and named in the summary.
        progress: Called with rows done and rows in all.
        tell: Called with lines that say what was taken over from the model.

    Raises:
        DataError: Rows that cannot be used, all counted.
        TaskError: The model has another task, or none and none is given.
        ModelError: The model cannot be loaded.
        OutputError: ``out`` holds predictions of another model or data set.
    """
    from tuyi.model.load import load_frontend, load_model, peek
    from tuyi.predict.local import LocalEngine

    settings, out = settings or PredictSettings(), Path(out)
    info = peek(str(model))
    tasks = with_budget(choose_tasks(str(model), info, task), budget)
    if info is not None:
        tell(_inherited(info, tasks, budget or {}))
    texts = [text for one in tasks for text in one.wording]
    frontend = load_frontend(str(model), texts)
    encoder = Encoder(frontend.tokenizer, frontend.spec, tasks)
    run = _run_record(str(model), str(data), tasks, info, settings)
    done = _resume(out, run)
    rows = survey(
        scan(data, options), encoder, labelled=False, on_bad_row=on_bad_row, wanted=lambda row: row.id not in done
    )
    loaded = load_model(frontend, device=settings.device, dtype=settings.dtype)
    engine = LocalEngine(loaded, encoder, pack_tokens=settings.pack_tokens, workers=settings.workers, info=info)
    started = time.perf_counter()
    made, shortened = 0, 0
    with out.open("a", encoding="utf-8") as file:
        for predictions in engine.predict(_sized(rows)):
            file.writelines(prediction.to_json() + "\n" for prediction in predictions)
            file.flush()
            made += len(predictions)
            shortened += sum(_is_shortened(prediction) for prediction in predictions)
            progress(len(done) + made, len(done) + len(rows))
    seconds = time.perf_counter() - started
    return PredictSummary(out, tasks, len(done) + made, len(done), shortened, rows.skipped, seconds)


def _sized(rows: Survey) -> Iterator[tuple[Any, int]]:
    return zip(rows.rows, rows.tokens)


def _is_shortened(prediction: Prediction) -> bool:
    return any(key in prediction.notes for key in ("dropped_turns", "shrunk_images", "cut_characters"))


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


def _inherited(info: FolderInfo, tasks: TaskSet, budget: Mapping[str, Any]) -> str:
    shown = []
    for one in tasks:
        limits = ", ".join(
            f"{key} {getattr(one.budget, key)}{' (set now)' if key in budget else ''}"
            for key in ("max_pixels", "max_tokens")
        )
        shown.append(f"{one.name}: {limits}, temperature {info.temperature(one.name):.3g}")
    return f"inherited from the model: {'; '.join(shown)}"


def _run_record(
    model: str, data: str, tasks: TaskSet, info: FolderInfo | None, settings: PredictSettings
) -> dict[str, Any]:
    """How a predictions file was made; what must not change when a run goes on."""
    return {
        "model": model,
        "data": data,
        "tasks": tasks.model_dump(mode="json"),
        "temperature": {one.name: info.temperature(one.name) if info else 1.0 for one in tasks},
        "settings": settings.model_dump(mode="json"),
        "versions": versions(),
    }


_FIXED = ("model", "data", "tasks", "temperature")


def _resume(out: Path, run: dict[str, Any]) -> set[str]:
    """Ids that ``out`` has already; a line that was cut short is removed.

    Raises:
        OutputError: ``out`` was made by another run.
        FormatError: ``out`` or the description beside it is broken.
    """
    record = run_file(out)
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(run, ensure_ascii=False, indent=1), encoding="utf-8")
        return set()
    if not record.exists():
        raise OutputError(f"{out} exists and has no {record.name} beside it; choose another --out or remove it")
    earlier = read_run(out)
    for key in _FIXED:
        if earlier.get(key) != run[key]:
            raise OutputError(
                f"{out} holds predictions of another run: its {key} is {reprlib.repr(earlier.get(key))}, "
                f"this run's is {reprlib.repr(run[key])}; choose another --out or remove it"
            )
    _cut_partial_line(out)
    return {prediction.id for prediction in read_predictions(out)}


def _cut_partial_line(path: Path) -> None:
    """Remove what a killed run left of a line at the end."""
    with path.open("rb+") as file:
        content_end = file.seek(0, os.SEEK_END)
        at = content_end
        while at > 0:
            step = min(1 << 16, at)
            file.seek(at - step)
            newline = file.read(step).rfind(b"\n")
            if newline >= 0:
                at = at - step + newline + 1
                break
            at -= step
        if at < content_end:
            file.truncate(at)
