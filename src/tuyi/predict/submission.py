"""The challenge's submission file: every column of the test rows and ``predict``, or ``id,predict``."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from tuyi.data.example import Example, Image, Text
from tuyi.errors import DataError
from tuyi.task.catalog import TaskSet

__all__ = ["SubmissionForm", "write_submission"]

SubmissionForm: TypeAlias = Literal["full", "bare"]


def write_submission(
    path: Path, rows: Iterable[Example], labels: Mapping[str, str], tasks: TaskSet, form: SubmissionForm = "full"
) -> int:
    """Write a submission, validated, as CSV in ``utf-8-sig``.

    Args:
        path: The file to write.
        rows: The test rows, in their own order.
        labels: Predicted label of each id.
        tasks: The tasks whose labels are allowed.
        form: ``full`` for all columns of the test rows plus ``predict``, ``bare`` for ``id,predict``.

    Returns:
        Rows written.

    Raises:
        DataError: A row without a prediction, a prediction without a row, or a label outside the row's task.
    """
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    used: set[str] = set()
    with part.open("w", encoding="utf-8-sig", newline="") as file:
        writer: Any = None
        for row in rows:
            if row.id not in labels:
                raise DataError(f"row {row.id!r} has no prediction; run `tuyi predict` to the end first", row.place)
            task, label = tasks.of(row), labels[row.id]
            if task.labels is None or label not in task.labels.names:
                raise DataError(f"{label!r} is not a label of {task.name}", row.place)
            columns = {"id": row.id} if form == "bare" else _columns(row)
            if writer is None:
                writer = csv.DictWriter(file, [*columns, "predict"], extrasaction="raise")
                writer.writeheader()
            writer.writerow({**columns, "predict": label})
            used.add(row.id)
    if unknown := labels.keys() - used:
        raise DataError(f"{len(unknown)} predictions have no row in the data, the first is id {sorted(unknown)[0]!r}")
    os.replace(part, path)
    return len(used)


def _columns(row: Example) -> dict[str, Any]:
    """The columns of a test row as the challenge has them; the list of pictures as Python writes it, as pandas does."""
    text = "".join(part.text if isinstance(part, Text) else "<image>" for part in row.content)
    pictures = [part.name for part in row.content if isinstance(part, Image)]
    known = {"id": row.id, "instruction": text, "input": "", "output": row.label or "", "image": pictures}
    return {**known, **{key: value for key, value in row.extra.items() if key not in known}}
