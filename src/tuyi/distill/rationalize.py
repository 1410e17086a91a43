"""`tuyi rationalize`: labelled rows and a teacher to the same rows with the reason of each label, bad reasons left out.

Beside ``reasons.jsonl`` lie ``reasons.answers.jsonl`` with every answer of the teacher, from which a stopped run goes
on, ``reasons.rejected.jsonl`` with the rows that were left out and why, and ``reasons.jsonl.run.json``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tuyi.data.problem import Problem
from tuyi.data.source import find_source
from tuyi.data.write import ExampleWriter, WriteFormat
from tuyi.distill.drafts import Drafts, RationalizeRun, RationalizeSettings
from tuyi.distill.lessons import Lesson, Lessons, first_texts
from tuyi.distill.reason_checks import CHECKS
from tuyi.distill.reasons import ReasonTemplate, reason_task, reason_templates, support_task
from tuyi.encode.survey import OnBadRow
from tuyi.errors import EngineError, OutputError, TaskError
from tuyi.model.folder import versions
from tuyi.model.load import peek
from tuyi.model.tasks import with_budget
from tuyi.predict.prediction import read_predictions, read_run, run_file
from tuyi.task.catalog import TaskSet, load_tasks
from tuyi.task.task import Task
from tuyi.whole import write_whole

__all__ = ["RationalizeRun", "RationalizeSettings", "RationalizeSummary", "rationalize"]


@dataclass(frozen=True, slots=True)
class RationalizeSummary:
    """What a run did.

    Args:
        out: The data set with reasons.
        left_out: The rows that were left out, each with the check and what it found.
        rows: Rows in it.
        had: How many of them had a reason before.
        given: How many were given one.
        rejected: Rows that were left out, by check.
        skipped: What is wrong with each row that could not be asked.
        calls: Model calls, those of earlier runs and of the checks among them.
        earlier: How many answers came from earlier runs.
        prompt_tokens, output_tokens: Of all calls.
        seconds: Time spent asking now, a teacher's loading not counted.
        cost: By the prices that were given; None without any.
    """

    out: Path
    left_out: Path
    rows: int
    had: int
    given: int
    rejected: Mapping[str, int]
    skipped: tuple[str, ...]
    calls: int
    earlier: int
    prompt_tokens: int
    output_tokens: int
    seconds: float
    cost: float | None


def rationalize(
    data: str | Path,
    teacher: str,
    out: str | Path,
    *,
    task: str | TaskSet | None = None,
    run: RationalizeRun | None = None,
    on_bad_row: OnBadRow = "stop",
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    tell: Callable[[str], None] = lambda line: None,
) -> RationalizeSummary:
    """Have a teacher write why each label is right, and keep the reasons that pass the checks.

    Every row is looked at before the teacher is asked. A run that was stopped goes on where it was.

    Args:
        data: Labelled rows: anything that ``tuyi.read`` reads.
        teacher: A model folder or hub id; with the engine ``api`` also the name of a model there.
        out: The data set to write, ``.jsonl`` or ``.json``.
        task: A task set, built-in name or YAML file; a model folder's own where not given.
        run: Engine, wording, checks, budget.
        on_bad_row: Whether one bad row, such as one without a label, stops the run, or is left out and named.
        progress: Called with what is done, rows done and rows in all.
        tell: Called with lines that say what was chosen.

    Raises:
        DataError: Rows that cannot be used, all counted.
        TaskError: No task is given, or one without labels.
        ConfigError: The templates are wrong.
        ModelError: The teacher cannot be loaded.
        EngineError: The teacher fails; what it has answered is kept.
        OutputError: ``out`` is taken.
    """
    run, data, out = run or RationalizeRun(), Path(data), Path(out)
    tasks = with_budget(_tasks(teacher, task), run.budget)
    work = Drafts(data, tasks, reason_templates(tasks, run.reasons.templates), run)
    answers, rejected = (out.with_name(f"{out.stem}.{kind}.jsonl") for kind in ("answers", "rejected"))
    record = _claim(out, answers, teacher, work)
    asked = [one for name in work.templates for one in _asked_of(tasks, name, work.templates[name])]
    by = Lessons(
        teacher,
        TaskSet(name=tasks.name, tasks=tuple(asked)),
        answers,
        run.predict,
        sized_by=run.reasons.sized_by,
        texts=first_texts(work.scan()),
        tell=tell,
    )
    with closing(by), _what_is_kept(answers):
        first = by.ask(work.reason_rows(), on_bad_row=on_bad_row, progress=lambda *rows: progress("reasons", *rows))
        work.take(first)
        second = Lesson({})
        if run.reasons.checks.not_supported:
            second = by.ask(work.support_rows(), on_bad_row="skip", progress=lambda *rows: progress("checks", *rows))
            work.take_support(second)
    written, had = _write(out, rejected, work)
    summary = _summary((out, rejected, answers), work, (first, second), written, had)
    write_whole(run_file(out), _json({**record, "summary": asdict(summary)}))
    return summary


def _tasks(teacher: str, task: str | TaskSet | None) -> TaskSet:
    """The given tasks, else those that a model folder was taught."""
    if task is not None:
        return load_tasks(task) if isinstance(task, str) else task
    info = peek(teacher) if Path(teacher).is_dir() else None
    if info is None:
        raise TaskError(f"{teacher} has no task of its own; say with --task which task the rows are of")
    return info.tasks


def _asked_of(tasks: TaskSet, name: str, template: ReasonTemplate) -> tuple[Task, Task]:
    return reason_task(tasks[name], template), support_task(tasks[name], template)


_FIXED = ("data", "teacher")


def _claim(out: Path, answers: Path, teacher: str, work: Drafts) -> dict[str, Any]:
    """Write down what the run is, unless ``out`` belongs to another one."""
    record = {
        "data": str(work.data),
        "teacher": teacher,
        "tasks": work.tasks.model_dump(mode="json"),
        "templates": {name: one.model_dump(mode="json") for name, one in work.templates.items()},
        "settings": work.run.model_dump(mode="json"),
        "versions": versions(),
    }
    _format(out, work)
    earlier = read_run(out)
    taken = next((path for path in (out, answers) if path.exists()), None)
    if taken is not None and not earlier:
        raise OutputError(
            f"{taken} exists and has no {run_file(out).name} beside it; choose another --out or remove it"
        )
    for key in _FIXED if taken is not None else ():
        if earlier.get(key) != record[key]:
            raise OutputError(
                f"{out} belongs to another run: its {key} is {earlier.get(key)!r}, this run's is {record[key]!r}; "
                "choose another --out or remove it"
            )
    write_whole(run_file(out), _json(record))
    return record


def _format(out: Path, work: Drafts) -> WriteFormat:
    """The format that is written: by the file's ending, and where that leaves a choice, as the data is."""
    if out.suffix.lower() == ".jsonl":
        return "messages"
    if out.suffix.lower() != ".json":
        raise OutputError(f"{out}: expected a name ending in .jsonl or .json")
    return "sharegpt" if find_source(work.data, work.run.read).format == "sharegpt" else "competition"


@contextmanager
def _what_is_kept(answers: Path) -> Iterator[None]:
    """Where the teacher fails, say what there is already."""
    try:
        yield
    except EngineError as error:
        if not answers.exists() or not answers.stat().st_size:
            raise
        raise EngineError(
            f"{error}\nThe answers that came are kept in {answers}; the same command goes on from there"
        ) from error


def _write(out: Path, rejected: Path, work: Drafts) -> tuple[int, int]:
    """Write the rows that have a reason, and why others were left out; how many rows there are, and had one before."""
    left: list[str] = []
    had = 0
    with ExampleWriter(out, _format(out, work), force=True) as writer:
        for row in work.scan():
            if isinstance(row, Problem):
                continue
            draft = work.draft(row)
            if draft is None:
                if row.rationale is not None and row.label is not None and not work.run.reasons.replace:
                    writer.write(row)
                    had += 1
            elif draft.rejection is None:
                writer.write(replace(row, rationale=draft.text))
            else:
                left.append(
                    _line(
                        id=row.id,
                        task=draft.task,
                        label=draft.label,
                        check=draft.rejection.check,
                        detail=draft.rejection.detail,
                        reason=draft.text,
                    )
                )
    write_whole(rejected, left)
    return writer.rows, had


def _summary(
    files: tuple[Path, Path, Path], work: Drafts, lessons: tuple[Lesson, Lesson], rows: int, had: int
) -> RationalizeSummary:
    out, left_out, answers = files
    spent = Counter[str]()
    for one in read_predictions(answers) if answers.exists() else ():
        calls = int(one.notes.get("calls", 1))
        spent["calls"] += calls
        spent["prompt"] += calls * int(one.notes.get("tokens", 0))
        spent["output"] += int(one.notes.get("output_tokens", 0))
    settings = work.run.reasons
    cost = None
    if settings.price_input is not None or settings.price_output is not None:
        prices = (settings.price_input or 0.0, settings.price_output or 0.0)
        cost = (spent["prompt"] * prices[0] + spent["output"] * prices[1]) / 1e6
    rejected = Counter(draft.rejection.check for draft in work.drafts.values() if draft.rejection is not None)
    return RationalizeSummary(
        out=out,
        left_out=left_out,
        rows=rows,
        had=had,
        given=rows - had,
        rejected={check: rejected[check] for check in CHECKS if rejected[check]},
        skipped=lessons[0].skipped,
        calls=spent["calls"],
        earlier=sum(lesson.earlier for lesson in lessons),
        prompt_tokens=spent["prompt"],
        output_tokens=spent["output"],
        seconds=sum(lesson.seconds for lesson in lessons),
        cost=cost,
    )


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1, default=str)


def _line(**value: str) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
