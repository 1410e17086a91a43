"""What `tuyi label` tells: how many of each label, what was left out, how good teachers and filter are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from tuyi.distill.select import Candidate, LeftOut, Selection
from tuyi.distill.teachers import Answers
from tuyi.distill.trust import Trust
from tuyi.evaluate.bootstrap import Interval
from tuyi.evaluate.combine import agreement
from tuyi.evaluate.page import PageTable, render_page
from tuyi.task.catalog import TaskSet
from tuyi.task.task import Task

__all__ = ["label_page", "label_tables"]


def label_tables(
    rows: Sequence[Candidate],
    chosen: Selection,
    left: Mapping[str, LeftOut],
    answers: Answers,
    trust: Trust | None,
    lowest: Mapping[str, float],
    tasks: TaskSet,
) -> tuple[PageTable, ...]:
    """The tables of the report.

    Args:
        rows: What the teachers say of every row.
        chosen: Which of them are kept.
        left: Every row that is not, those that no teacher answered among them.
        answers: The teachers' own.
        trust: How good they are on labelled rows.
        lowest: Lowest confidence of each task.
        tasks: Say which labels there are.
    """
    tables = [_labels(rows, chosen, task, lowest[task.name]) for task in tasks]
    kinds = Counter(one.kind for one in left.values())
    tables.append(PageTable("Left out", ("why", "rows"), tuple((kind, str(n)) for kind, n in kinds.most_common())))
    if len(answers.plain) > 1:
        names = list(answers.plain)
        shares = agreement(answers.plain)
        matrix = tuple((name, *(f"{share:.3f}" for share in row)) for name, row in zip(names, shares))
        tables.append(PageTable("Share of rows with the same label", ("teacher", *names), matrix))
    if answers.views:
        tables.append(_views(rows, answers))
    if trust is not None:
        tables += _trust(trust)
    return tuple(tables)


def _labels(rows: Sequence[Candidate], chosen: Selection, task: Task, least: float) -> PageTable:
    said = Counter(row.label for row in rows if row.task == task.name)
    kept = Counter(row.label for row in chosen.kept.values() if row.task == task.name)
    sure = {name: sum(row.confidence for row in rows if (row.task, row.label) == (task.name, name)) for name in said}
    body = [
        (name, str(count), str(kept[name]), f"{kept[name] / count:.0%}", f"{sure[name] / count:.3f}")
        for name, count in said.most_common()
    ]
    if body:
        total, all_kept = said.total(), kept.total()
        mean = sum(sure.values()) / total
        body.append(("all", str(total), str(all_kept), f"{all_kept / total:.0%}", f"{mean:.3f}"))
    columns = ("label", "rows that teachers give it", "kept", "share", "mean confidence")
    unnamed = [name for name in (task.labels.names if task.labels else ()) if not said[name]]
    note = f"Lowest confidence {least:.3f}." + (f" No row of: {', '.join(unnamed)}." if unnamed and body else "")
    return PageTable(f"{task.name}: rows of each label", columns, tuple(body), note)


def _views(rows: Sequence[Candidate], answers: Answers) -> PageTable:
    body = []
    for name, answered in answers.views.items():
        model, seen = next(iter(answered.items()))
        plain = answers.plain[model]
        changed = sum(one.notes.get("tokens") != plain[id].notes.get("tokens") for id, one in seen.items())
        same = sum(row.views.get(name, row.label) == row.label for row in rows)
        body.append((name, str(changed), f"{same / len(rows):.3f}"))
    columns = ("view", "rows that it changes", "share of rows with the same label")
    return PageTable("Seen otherwise", columns, tuple(body), "A row that a view leaves as it is agrees with itself.")


def _trust(trust: Trust) -> list[PageTable]:
    judged = tuple(
        (
            f"{one.teacher}, {one.task}",
            str(one.scores.rows),
            _told(one.scores.metrics["weighted_f1"]),
            _told(one.scores.metrics["accuracy"]),
            _number(one.ece),
            _number(one.fitted_ece),
            _number(one.temperature),
        )
        for one in trust.judged
    )
    filtered = tuple(
        (
            one.task,
            str(one.rows),
            f"{trust.lowest[one.task]:.3f}",
            f"{one.kept} ({one.kept / one.rows:.0%})",
            _told(one.precision) if one.precision else "–",
        )
        for one in trust.filtered
    )
    return [
        PageTable(
            "Teachers on the labelled rows",
            ("teacher, task", "rows", "weighted F1", "accuracy", "ECE", "ECE fitted", "temperature"),
            judged,
            "ECE fitted: each half of the rows at the temperature fitted on the other half.",
        ),
        PageTable(
            "The filter on the labelled rows",
            ("task", "rows", "lowest confidence", "kept", "right among the kept"),
            filtered,
            "Quotas not counted. Where a precision picked the lowest confidence, it did so on these rows.",
        ),
    ]


def _told(value: Interval) -> str:
    return f"{value.value:.3f} ({value.low:.3f}–{value.high:.3f})"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def label_page(
    out: Path, tables: Sequence[PageTable], made_of: Sequence[str], rows: int, kept: int, trust: Trust | None
) -> str:
    """The report as a page.

    Args:
        out: The data set.
        tables: From :func:`label_tables`.
        made_of: The data, then the teachers.
        rows, kept: Rows that teachers labelled, and how many of them are kept.
        trust: How good teachers and filter are.
    """
    data, *teachers = made_of
    if trust is None:
        lead = "How good the labels are was not measured: name labelled rows with --check."
    else:
        right = [one for one in trust.filtered if one.precision is not None]
        told = "; ".join(f"{one.task} {one.precision.value:.1%}" for one in right if one.precision)
        lead = f"Right among the kept, on labelled rows: {told or 'none is kept'}."
    made = {"Data set": str(out), "Rows from": data, "Teachers": ", ".join(teachers)}
    return render_page("tuyi label", f"{kept:,} of {rows:,} rows kept", lead, tables, made)
