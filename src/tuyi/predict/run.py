"""`tuyi predict`: a model folder and data to a predictions file, each id exactly once."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuyi.data.example import Example
from tuyi.data.options import ReadOptions
from tuyi.data.problem import Problem
from tuyi.data.source import scan
from tuyi.encode.encoder import Encoder
from tuyi.encode.survey import OnBadRow, Survey, survey
from tuyi.model.folder import FolderInfo
from tuyi.model.tasks import choose_tasks, with_budget
from tuyi.predict.engine import SizedRow
from tuyi.predict.limits import Cost, cost_of, keep_limits
from tuyi.predict.prediction import Prediction, read_predictions
from tuyi.predict.resume import resume, run_record
from tuyi.predict.settings import PredictRun, PredictSettings
from tuyi.task.answer import Free
from tuyi.task.catalog import TaskSet

if TYPE_CHECKING:
    from tuyi.model.load import Frontend

__all__ = ["Answering", "PredictRun", "PredictSettings", "PredictSummary", "answer_rows", "predict"]


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
        cost: What the dearest of all rows cost, as the file says; None where nothing is written and no limit set.
        seconds: Time spent predicting, model loading and compiling not counted.
        spent: Seconds of it by part, for one model on one device of this machine; empty otherwise.
    """

    out: Path
    tasks: TaskSet
    rows: int
    resumed: int
    shortened: int
    skipped: tuple[str, ...]
    cost: Cost | None
    seconds: float
    spent: Mapping[str, float] = field(default_factory=dict)


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
    """Answer every row of a data set: labels by exact scoring, free text as the answer format has it.

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
        ConfigError: Limits that the answers of a task cannot keep to.
        EngineError: An engine that fails, or a row that cost more than the limits allow.
        OutputError: ``out`` holds predictions of another model or data set.
    """
    from tuyi.model.load import load_frontend, peek

    settings, out = settings or PredictSettings(), Path(out)
    info = peek(str(model))
    tasks = with_budget(choose_tasks(str(model), info, task), budget)
    if info is not None:
        tell(_inherited(info, tasks, budget or {}))
        own = {one.name: one.wording for one in info.tasks}
        for one in tasks:
            if one.wording != own[one.name]:
                tell(
                    f"{one.name} is asked in other words than the model was taught; leave --task out unless you mean it"
                )
    frontend = load_frontend(str(model), [text for one in tasks for text in one.wording])
    encoder = Encoder(frontend.tokenizer, frontend.spec, tasks)
    limited = keep_limits(tasks, encoder, settings)
    if limited != tasks:
        for line in _shortened(tasks, limited):
            tell(line)
        tasks, encoder = limited, Encoder(frontend.tokenizer, frontend.spec, limited)
    run = run_record(str(model), str(data), tasks, info, settings)
    done = resume(out, run)
    found = answer_rows(
        scan(data, options),
        Answering(str(model), frontend, encoder, settings, on_bad_row, progress, tell, tries_fp8=True),
        out,
        done,
        _is_shortened,
    )
    is_limited = settings.max_calls is not None or settings.max_output_tokens is not None
    cost = None
    if is_limited or any(one.answer.has_free for one in tasks):
        cost = cost_of(read_predictions(out), settings)
    return PredictSummary(
        out, tasks, len(done) + found.made, len(done), found.counted, found.skipped, cost, found.seconds, found.spent
    )


@dataclass(frozen=True, slots=True, eq=False)
class Answering:
    """How rows are answered.

    Args:
        model, frontend, encoder: Who is asked, and in whose words; the encoder's tasks are what is asked.
        settings, on_bad_row, progress, tell: As for :func:`predict`.
        tries_fp8: Whether fp8, where the settings ask for it, is compared with bfloat16 on some of the rows first.
    """

    model: str
    frontend: Frontend
    encoder: Encoder
    settings: PredictSettings
    on_bad_row: OnBadRow
    progress: Callable[[int, int], None]
    tell: Callable[[str], None]
    tries_fp8: bool = False


@dataclass(frozen=True, slots=True)
class Answered:
    """What became of rows: predictions made, how many of them counted, rows left out; time as in the summary."""

    made: int
    counted: int
    skipped: tuple[str, ...]
    seconds: float
    spent: Mapping[str, float]


def answer_rows(
    examples: Iterable[Example | Problem],
    how: Answering,
    out: Path,
    done: Collection[str],
    counts: Callable[[Prediction], bool],
) -> Answered:
    """Look at every row, start an engine, and append its predictions to a file as they are made.

    Args:
        examples: The rows.
        how: Who answers them.
        out: The predictions file; what it holds stays.
        done: Ids of the rows that are in it, which are passed over.
        counts: Which predictions are counted.

    Raises:
        DataError, ModelError, ConfigError, EngineError: As :func:`predict`.
    """
    from tuyi.predict.loading import Job
    from tuyi.predict.local import LocalEngine
    from tuyi.predict.opening import open_engine

    rows = survey(
        examples, how.encoder, labelled=False, on_bad_row=how.on_bad_row, wanted=lambda row: row.id not in done
    )
    skipped = list(rows.skipped)
    skip = None if how.on_bad_row == "stop" else (lambda error: skipped.append(str(error)))
    job = Job(how.model, how.encoder.tasks, how.settings, rows=len(rows), skip=skip)
    trial = _trial(rows, how.settings) if how.tries_fp8 else []
    engine = open_engine(job, how.encoder, how.frontend, trial=trial, tell=how.tell)
    started = time.perf_counter()
    made = counted = 0
    with closing(engine), out.open("a", encoding="utf-8") as file, closing(engine.predict(_sized(rows))) as answers:
        for predictions in answers:
            file.writelines(prediction.to_json() + "\n" for prediction in predictions)
            file.flush()
            made += len(predictions)
            counted += sum(map(counts, predictions))
            how.progress(len(done) + made, len(done) + len(rows))
        seconds = time.perf_counter() - started
        spent = engine.spent() if isinstance(engine, LocalEngine) else {}
    return Answered(made, counted, tuple(skipped), seconds, spent)


def _shortened(tasks: TaskSet, limited: TaskSet) -> Iterator[str]:
    """What became of the free text of each task."""
    for task, now in zip(tasks, limited):
        pairs = [(one, other) for one, other in zip(task.answer.segments, now.answer.segments) if one != other]
        for one, other in pairs:
            if isinstance(one, Free) and isinstance(other, Free):
                yield (
                    f"{task.name}: {one.free} of at most {other.max_tokens} tokens instead of {one.max_tokens}, "
                    "to keep to predict.max_output_tokens"
                )


def _sized(rows: Survey) -> Iterator[SizedRow]:
    return zip(rows.rows, rows.tokens)


_TRIAL = 256  # rows on which fp8 is compared with bfloat16: half a percent is one of them


def _trial(rows: Survey, settings: PredictSettings) -> list[SizedRow]:
    """Rows from all over the data set to try fp8 on."""
    if settings.precision != "fp8":
        return []
    step = max(1, len(rows) // _TRIAL)
    return [(rows.rows[index], rows.tokens[index]) for index in range(0, len(rows), step)][:_TRIAL]


def _is_shortened(prediction: Prediction) -> bool:
    return any(key in prediction.notes for key in ("dropped_turns", "shrunk_images", "cut_characters"))


def _inherited(info: FolderInfo, tasks: TaskSet, budget: Mapping[str, Any]) -> str:
    shown = []
    for one in tasks:
        limits = ", ".join(
            f"{key} {getattr(one.budget, key)}{' (set now)' if key in budget else ''}"
            for key in ("max_pixels", "max_tokens")
        )
        shown.append(f"{one.name}: {limits}, temperature {info.temperature(one.name):.3g}")
    return f"inherited from the model: {'; '.join(shown)}"
