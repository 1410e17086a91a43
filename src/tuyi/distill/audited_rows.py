"""The labelled rows of an audit, and what is known about each one's label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tuyi.data.example import Example
from tuyi.data.fingerprint import MediaDigests, digest
from tuyi.data.options import ReadOptions
from tuyi.data.source import read
from tuyi.data.split import strata_and_groups
from tuyi.data.stratify import Stratum
from tuyi.distill.corrections import fingerprint
from tuyi.distill.label_issues import Judged, Twins
from tuyi.distill.twins import merge_groups, twin_groups
from tuyi.errors import DataError, Place
from tuyi.evaluate.rows import join, load_predictions

if TYPE_CHECKING:
    from tuyi.encode.store import RowStore
    from tuyi.predict.prediction import Prediction
    from tuyi.task.catalog import TaskSet

__all__ = ["AuditedRows", "given_predictions", "judge_rows", "read_rows"]


@dataclass(frozen=True, slots=True, eq=False)
class AuditedRows:
    """The labelled rows of a data set.

    Args:
        rows: The rows themselves.
        strata: Task and label of each, in the task's spelling.
        groups: A number that rows share which show one picture, video or text of their own, or the same.
        twins: Lists of rows that show the same.
        fingerprints: Of each row, as a corrections file has them.
        unlabelled: Rows that were passed over: without a label, or of a task without labels.
    """

    rows: RowStore
    strata: Sequence[Stratum]
    groups: Sequence[int]
    twins: Sequence[Sequence[int]]
    fingerprints: Sequence[str]
    unlabelled: int

    @property
    def fingerprint(self) -> str:
        """Changes with any row."""
        return f"h{digest(''.join(self.fingerprints)):016x}"


def read_rows(data: str | Path, tasks: TaskSet, options: ReadOptions, near_pictures: bool = True) -> AuditedRows:
    """Read a data set and set its labelled rows apart.

    Args:
        data: Anything that ``tuyi.read`` reads.
        tasks: What is asked.
        options: How to read ``data``.
        near_pictures: Whether pictures that were saved again count as the same.

    Raises:
        DataError: A row that cannot be read, an id that stands there twice, a label outside the task, no labelled row.
        TaskError: A row that matches none of the tasks.
    """
    from tuyi.encode.store import RowStore

    rows, digests = RowStore(), MediaDigests()
    passed_over = 0

    def labelled() -> Iterator[Example]:
        nonlocal passed_over
        ids: set[str] = set()
        for example in read(data, options):
            if example.id in ids:
                raise DataError(f"duplicate id {example.id!r}; every row needs its own", example.place)
            ids.add(example.id)
            if example.label is None or tasks.of(example).labels is None:
                passed_over += 1
                continue
            rows.append(example)
            yield example

    strata, groups = strata_and_groups(labelled(), tasks, digests)
    if not strata:
        raise DataError(f"{data} has no row with a label of a closed set: there is nothing to audit")
    twins = twin_groups(rows, tasks, digests, near_pictures)
    return AuditedRows(
        rows=rows,
        strata=strata,
        groups=merge_groups(groups, twins),
        twins=twins,
        fingerprints=[fingerprint(row, digests) for row in rows],
        unlabelled=passed_over,
    )


def given_predictions(file: Path, audited: AuditedRows) -> dict[str, Prediction]:
    """The predictions of the audited rows that a file has; those of other rows are passed over.

    Raises:
        FormatError: The file is no predictions file.
        DataError: A row without a prediction.
    """
    predictions = load_predictions(file)
    found = {row.id: predictions[row.id] for row in audited.rows if row.id in predictions}
    if lost := [row.id for row in audited.rows if row.id not in found]:
        raise DataError(
            f"expected an out-of-sample prediction for each of the {len(audited.rows)} labelled rows, {len(lost)} have "
            f"none (first: {lost[0]})",
            Place(file),
        )
    return found


def judge_rows(
    audited: AuditedRows, predictions: Mapping[str, Prediction], file: Path, tasks: TaskSet, folds: int
) -> list[Judged]:
    """What is known about each row's label, in the order of the rows.

    Args:
        audited: The rows.
        predictions: Out-of-sample predictions by id; a row without one was judged by no model.
        file: Where they come from, for messages.
        tasks: What was asked.
        folds: A label with fewer rows than this is rare.

    Raises:
        DataError: Predictions without probabilities, or of other tasks or labels.
    """
    told: dict[str, Mapping[str, float]] = {}
    asked = (row for row in audited.rows if row.id in predictions)
    for task in join(predictions, file, asked, tasks, mistakes=0).values():
        if task.without_probabilities:
            raise DataError(
                f"{task.without_probabilities} predictions of task {task.name} carry no probabilities, which an audit "
                "needs; predict with an engine that gives them",
                Place(file),
            )
        for id, row_K in zip(task.ids, task.probabilities_NK(file)):
            told[id] = dict(zip(task.labels.names, row_K.tolist()))
    counts = Counter(audited.strata)
    named = [(row.id, label) for row, (_, label) in zip(audited.rows, audited.strata)]
    twins: dict[int, Twins] = {}
    for group in audited.twins:
        twins.update(dict.fromkeys(group, Twins.of(named[at] for at in group)))
    return [
        Judged(
            id=row.id,
            row=row.place.row,
            task=stratum[0],
            label=stratum[1],
            fingerprint=audited.fingerprints[at],
            probabilities=told.get(row.id, {}),
            twins=twins.get(at),
            rare=counts[stratum] < folds,
        )
        for at, (row, stratum) in enumerate(zip(audited.rows, audited.strata))
    ]
