"""The challenge's submission file: every column of the test rows and ``predict``, or ``id,predict``."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

from tuyi.data.example import Example
from tuyi.data.options import ReadOptions
from tuyi.data.problem import Problem
from tuyi.data.rows import raw_rows
from tuyi.data.source import find_source, scan
from tuyi.errors import DataError
from tuyi.predict.prediction import read_predictions
from tuyi.task.catalog import TaskSet
from tuyi.whole import write_whole

__all__ = ["SubmissionForm", "write_submission"]

SubmissionForm: TypeAlias = Literal["full", "bare"]


def write_submission(
    path: Path,
    data: Path,
    predictions: Path,
    tasks: TaskSet,
    form: SubmissionForm = "full",
    options: ReadOptions | None = None,
) -> int:
    """Write a submission, validated, as CSV in ``utf-8-sig``; whole or not at all.

    Args:
        path: The file to write.
        data: The test rows.
        predictions: What ``tuyi predict`` made of them.
        tasks: The tasks whose labels are allowed.
        form: ``full`` for all columns of the test rows plus ``predict``, lists as Python writes them, as pandas does;
            ``bare`` for ``id,predict``.
        options: How to read ``data``.

    Returns:
        Rows written, in the order of the test rows.

    Raises:
        DataError: A row without a prediction or with two, a prediction without a row, or a label outside the row's
            task.
        OutputError: ``path`` cannot be written.
    """
    labels = _labels(predictions)
    write_whole(path, _lines(data, labels, tasks, form, options), "utf-8-sig")
    return len(labels)


def _labels(predictions: Path) -> dict[str, str]:
    """The label of each id."""
    labels: dict[str, str] = {}
    for one in read_predictions(predictions):
        if one.id in labels:
            raise DataError(f"{predictions} holds id {one.id!r} twice; expected one prediction for each row")
        labels[one.id] = one.label
    return labels


class _Piece:
    """What a CSV writer takes for its file; it hands each line back."""

    def write(self, line: str) -> str:
        return line


def _lines(
    data: Path, labels: dict[str, str], tasks: TaskSet, form: SubmissionForm, options: ReadOptions | None
) -> Iterator[str]:
    """The submission line by line, each row with its label; every label has its row."""
    left = dict(labels)
    writer: csv.DictWriter[str] | None = None
    for row, columns in _rows(data, form, options):
        label = left.pop(row.id, None)
        if label is None:
            raise DataError("no prediction for this row; run `tuyi predict` to the end first", row.place)
        task = tasks.of(row)
        if task.labels is None or label not in task.labels.names:
            raise DataError(f"predicted {label!r} is not a label of {task.name}", row.place)
        if writer is None:
            writer = csv.DictWriter(_Piece(), [*columns, "predict"], restval="")
            yield writer.writeheader()
        if odd := columns.keys() - set(writer.fieldnames):
            raise DataError(f"column {sorted(odd)[0]!r} is missing from the first row; use the bare form", row.place)
        yield writer.writerow({**columns, "predict": label})
    if left:
        raise DataError(f"{len(left)} predictions have no row in {data}, the first is id {min(left)!r}")


def _rows(data: Path, form: SubmissionForm, options: ReadOptions | None) -> Iterator[tuple[Example, dict[str, Any]]]:
    """Each test row with the columns that a submission repeats, exactly as the file has them."""
    examples = (item for item in scan(data, options) if _usable(item))
    if form == "bare":
        yield from ((row, {"id": row.id}) for row in examples if isinstance(row, Example))
        return
    source = find_source(data, options)
    if source.format == "folder":
        raise DataError(f"{data} is a folder of pictures and has no columns to repeat; use the bare form")
    raw = raw_rows(source.file)
    for row in examples:
        assert isinstance(row, Example)
        number, columns = next(item for item in raw if not isinstance(item, Problem) and item[0] == row.place.row)
        assert number == row.place.row
        yield row, columns


def _usable(item: Example | Problem) -> bool:
    if isinstance(item, Problem):
        raise item.to_error()
    return True
