"""`tuyi label`: rows that nobody labelled, one or several teachers, a data set of the rows that can be trusted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from tuyi.config import Settings
from tuyi.data.example import Example
from tuyi.data.options import ReadOptions
from tuyi.data.problem import Problem
from tuyi.data.source import find_source, scan
from tuyi.data.write import ExampleWriter, WriteFormat
from tuyi.distill.averaged import candidates, recalibrated
from tuyi.distill.label_page import label_page, label_tables
from tuyi.distill.select import Candidate, LeftOut, Selection, SelectSettings, select
from tuyi.distill.teachers import Answers, Asking, Teacher, ask, check_asking, find_teachers
from tuyi.distill.trust import Trust, judge_teachers, lowest_confidence
from tuyi.distill.views import ViewSettings
from tuyi.encode.survey import OnBadRow
from tuyi.errors import DataError, OutputError
from tuyi.evaluate.page import PageTable
from tuyi.model.folder import versions
from tuyi.predict.settings import PredictSettings
from tuyi.task.catalog import TaskSet
from tuyi.whole import write_whole

__all__ = ["LabelSettings", "Labelled", "label"]

_SHOWN = 5


class LabelSettings(Settings):
    """How rows are labelled."""

    select: SelectSettings = SelectSettings()
    """Which rows are kept."""
    views: ViewSettings = ViewSettings()
    """How else the teachers are shown each row."""
    predict: PredictSettings = PredictSettings()
    """How the teachers are asked."""
    budget: dict[str, Any] = Field(default_factory=dict)
    """Budget settings to use instead of the teachers', such as ``max_pixels``."""
    read: ReadOptions = ReadOptions()
    """How to read data."""


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """What `label` made.

    Args:
        out: The data set of the kept rows.
        left_out: The other rows, with why, as JSON lines.
        rows: Rows in all.
        kept: Rows in ``out``.
        labels: What the teachers say of every row that they answered, kept or not, by id.
        trust: How good teachers and filter are on the check rows; None without such.
        tables: The report as tables.
        report: The page with the tables.
    """

    out: Path
    left_out: Path
    rows: int
    kept: int
    labels: Mapping[str, str]
    trust: Trust | None
    tables: tuple[PageTable, ...]
    report: Path


def label(
    data: str | Path,
    out: str | Path,
    teachers: Sequence[str],
    *,
    task: str | TaskSet | None = None,
    weights: Sequence[float] | None = None,
    check: str | Path | None = None,
    settings: LabelSettings | None = None,
    on_bad_row: OnBadRow = "stop",
    progress: Callable[[int, int], None] = lambda done, total: None,
    tell: Callable[[str], None] = lambda line: None,
) -> Labelled:
    """Label rows with teachers and write those that can be trusted as a data set with soft labels.

    The teachers' answers lie in a folder beside ``out``: a run that was stopped, or that is started again with another
    filter, asks nothing twice.

    Args:
        data: Rows without labels; anything that ``tuyi.read`` reads.
        out: The data set to write, ``.jsonl`` or ``.json``; beside it go the rows left out, report and record.
        teachers: Model folders or hub ids, asked by any engine of prediction; or predictions files of these rows, such
            as an ensemble's, which can answer neither views nor ``check``.
        task: Needed for a teacher without a task of its own.
        weights: Of each teacher in the average of their probabilities; equal where not given.
        check: Labelled rows. Teachers are judged and their temperatures fitted on them, and ``select.precision`` picks
            the lowest confidence on them.
        settings: How to ask and which rows to keep.
        on_bad_row: Whether one bad row stops the run, or is left out and named.
        progress, tell: As for :func:`tuyi.predict.run.predict`.

    Raises:
        DataError: Labelled rows in ``data``, or rows that cannot be used.
        TaskError: Teachers that do not know the same labels.
        ConfigError: Settings that do not go together.
        OutputError: ``out`` is another file, or was labelled by other teachers.
    """
    settings, out = settings or LabelSettings(), Path(out)
    form = _format(data, out, settings.read)
    _refuse_foreign(out)
    _refuse_labelled(data, settings.read)
    tasks, found = find_teachers(teachers, task, settings.budget)
    more = check is not None or any(settings.views.model_dump().values())
    check_asking(found, more=more, engine=settings.predict.engine)
    if check is None:
        lowest_confidence(settings.select, tasks)  # what is wrong with it shows before the teachers are asked
    asking = Asking(settings.predict, settings.views, settings.read, on_bad_row, progress, tell)
    trust = _check(found, check, out, tasks, weights, settings, asking) if check is not None else None
    answers = ask(found, data, _folder(out), asking)
    _tell_certain(answers, tell)
    fitted = recalibrated(answers, trust.temperatures) if trust else answers
    rows = candidates(fitted, tasks, weights)
    lowest = trust.lowest if trust else lowest_confidence(settings.select, tasks)
    chosen = select(rows, settings.select, lowest)
    given = {"data": data, "teachers": list(teachers), "weights": weights, "check": check, "tasks": tasks}
    _write_record(out, given, settings, trust, lowest)
    left = _write(out, form, data, chosen, settings)
    if not chosen.kept:
        tell(f"the filter keeps no row, {out} is empty; the report says why rows were left out")
    tables = label_tables(rows, chosen, left, fitted, trust, lowest, tasks)
    report = out.with_name(f"{out.stem}.report.html")
    write_whole(report, label_page(out, tables, [str(data), *teachers], len(rows), len(chosen.kept), trust))
    return Labelled(
        out=out,
        left_out=_left_out_file(out),
        rows=len(chosen.kept) + len(left),
        kept=len(chosen.kept),
        labels={row.id: row.label for row in rows},
        trust=trust,
        tables=tables,
        report=report,
    )


def _format(data: str | Path, out: Path, options: ReadOptions) -> WriteFormat:
    """The format to write: the source's where ``out`` is called like it, else what its name says."""
    if out.suffix.lower() in (".jsonl", ".ndjson"):
        return "messages"
    if out.suffix.lower() != ".json":
        raise OutputError(f"{out}: expected a name ending in .jsonl, or in .json for the competition's format")
    return "competition" if find_source(data, options).format == "competition" else "sharegpt"


def _record_file(out: Path) -> Path:
    return out.with_name(out.name + ".run.json")


def _folder(out: Path) -> Path:
    return out.with_name(f"{out.stem}.teachers")


def _left_out_file(out: Path) -> Path:
    return out.with_name(f"{out.stem}.left_out.jsonl")


def _refuse_foreign(out: Path) -> None:
    if out.exists() and not _record_file(out).exists():
        raise OutputError(f"{out} exists and `tuyi label` did not write it; choose another --out or remove it")


def _refuse_labelled(data: str | Path, options: ReadOptions) -> None:
    labelled, rows = [], 0
    for row in scan(data, options):
        rows += 1
        if isinstance(row, Example) and row.label is not None:
            labelled.append(str(row.place) or f"id {row.id}")
    if labelled:
        shown = "; ".join(labelled[:_SHOWN]) + ("; …" if len(labelled) > _SHOWN else "")
        raise DataError(
            f"expected rows without a label, {len(labelled)} of {rows} have one ({shown}); take them out, or name them "
            "with --check to see how good the teacher is on them"
        )


def _check(
    teachers: Sequence[Teacher],
    check: str | Path,
    out: Path,
    tasks: TaskSet,
    weights: Sequence[float] | None,
    settings: LabelSettings,
    asking: Asking,
) -> Trust:
    asking.tell(f"asking about the labelled rows of {check}")
    rows = [row for row in scan(check, settings.read) if isinstance(row, Example)]
    if unlabelled := [row for row in rows if row.label is None]:
        raise DataError(f"expected labelled rows to check by, {len(unlabelled)} have no label", unlabelled[0].place)
    answers = ask(teachers, check, _folder(out) / f"check-{Path(check).stem}", asking)
    answered = next(iter(answers.plain.values()))
    return judge_teachers(answers, [row for row in rows if row.id in answered], tasks, weights, settings.select)


def _tell_certain(answers: Answers, tell: Callable[[str], None]) -> None:
    for model, rows in answers.plain.items():
        if without := sum(not one.probabilities for one in rows.values()):
            tell(f"{model} gives no probabilities for {without} of {len(rows)} rows: it counts as certain of its label")


def _write_record(
    out: Path, given: Mapping[str, Any], settings: LabelSettings, trust: Trust | None, lowest: Mapping[str, float]
) -> None:
    record = {
        **given,
        "data": str(given["data"]),
        "weights": list(given["weights"]) if given["weights"] is not None else None,
        "check": str(given["check"]) if given["check"] is not None else None,
        "tasks": given["tasks"].model_dump(mode="json"),
        "settings": settings.model_dump(mode="json"),
        "lowest_confidence": dict(lowest),
        "temperatures": {model: dict(one) for model, one in trust.temperatures.items()} if trust else {},
        "filter": [asdict(one) for one in trust.filtered] if trust else [],
        "versions": versions(),
    }
    write_whole(_record_file(out), json.dumps(record, ensure_ascii=False, indent=1))


def _write(
    out: Path, form: WriteFormat, data: str | Path, chosen: Selection, settings: LabelSettings
) -> dict[str, LeftOut]:
    """The kept rows as a data set, the others as JSON lines; what was left out, by id."""
    left: dict[str, LeftOut] = {}

    def lines() -> Iterator[str]:
        for row in scan(data, settings.read):
            if isinstance(row, Problem):
                why = LeftOut("not answered", str(row))
                left[row.place.id or f"row {row.place.row}"] = why
                yield _line(row.place.id, why)
            elif (kept := chosen.kept.get(row.id)) is not None:
                writer.write(_labelled(row, kept, settings.select))
            else:
                why = chosen.left_out.get(row.id) or LeftOut("not answered", "not every teacher could use the row")
                left[row.id] = why
                yield _line(row.id, why)

    with ExampleWriter(out, form, force=True) as writer:
        write_whole(_left_out_file(out), lines())
    return left


def _line(id: str | None, why: LeftOut) -> str:
    return json.dumps({"id": id, "kind": why.kind, "why": why.why}, ensure_ascii=False) + "\n"


def _labelled(row: Example, kept: Candidate, settings: SelectSettings) -> Example:
    return replace(
        row,
        label=kept.label,
        soft={name: float(f"{chance:.8g}") for name, chance in kept.soft.items()} if kept.soft is not None else None,
        weight=1.0 if settings.weight == "one" else round(kept.confidence, 6),
        rationale=kept.rationale,
    )
