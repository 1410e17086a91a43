"""Predictions laid beside the gold rows that they answer."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from tuyi.data.example import Example
from tuyi.errors import DataError, FormatError, LabelError, Place, TaskError
from tuyi.evaluate.bootstrap import Floats, Ints
from tuyi.predict.prediction import Prediction, read_predictions
from tuyi.task import LabelSet, Task, TaskSet

__all__ = ["JudgedTask", "Mistake", "join", "load_predictions"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Mistake:
    """A row that the model got wrong.

    Args:
        task: The task that was asked, where it is known and not only its labels.
        confidence: Probability that the model gave its answer; None where the predictions carry none.
    """

    example: Example
    task: Task | None
    gold: str
    prediction: Prediction
    confidence: float | None


@dataclass(slots=True, eq=False)
class JudgedTask:
    """One task's labelled rows with their predictions, in the order of the data.

    Args:
        labels: The task's label set.
        task: The task itself, where it is known and not only its labels.
        gold, predicted: Label indices.
        unlabelled: Rows without a gold label; they are counted, never scored.
        mistakes: The most confident ones, most confident first.
    """

    name: str
    labels: LabelSet
    task: Task | None
    ids: list[str] = field(default_factory=list)
    gold: list[int] = field(default_factory=list)
    predicted: list[int] = field(default_factory=list)
    predictions: list[Prediction] = field(default_factory=list)
    unlabelled: int = 0
    mistakes: list[Mistake] = field(default_factory=list)

    @property
    def gold_N(self) -> Ints:
        """Gold label indices as an array."""
        return np.asarray(self.gold, dtype=np.int64)

    @property
    def predicted_N(self) -> Ints:
        """Predicted label indices as an array."""
        return np.asarray(self.predicted, dtype=np.int64)

    @property
    def without_probabilities(self) -> int:
        """Rows whose prediction carries no probabilities."""
        return sum(not prediction.probabilities for prediction in self.predictions)

    def logprobs_NK(self, file: Path) -> Floats:
        """Log probabilities, labels in the task's order."""
        return self._table(file, [prediction.logprobs for prediction in self.predictions])

    def probabilities_NK(self, file: Path) -> Floats:
        """Probabilities, labels in the task's order."""
        return self._table(file, [prediction.probabilities for prediction in self.predictions])

    def _table(self, file: Path, rows: list[Mapping[str, float]]) -> Floats:
        table_NK = np.empty((len(rows), len(self.labels)))
        for n, (row, prediction) in enumerate(zip(rows, self.predictions, strict=True)):
            if tuple(row) != self.labels.names:
                row = _in_order(row, self, Place(file, id=prediction.id))
            table_NK[n] = list(row.values())
        return table_NK


def _in_order(row: Mapping[str, float], judged: JudgedTask, place: Place) -> dict[str, float]:
    values = {canonical(judged.labels, label, place): value for label, value in row.items()}
    if missing := [name for name in judged.labels.names if name not in values]:
        raise FormatError(
            f"expected a probability for each of the {len(judged.labels)} labels of {judged.name}, "
            f"{len(missing)} have none (first: {missing[0]!r}); was it predicted with another version of the task?",
            place,
        )
    return {name: values[name] for name in judged.labels.names}


def canonical(labels: LabelSet, text: str, place: Place) -> str:
    """The task's own spelling of a label.

    Raises:
        LabelError: Outside the set; carries the place.
    """
    try:
        return labels.canonical(text)
    except LabelError as error:
        raise error.at(place) from None


def load_predictions(path: Path) -> dict[str, Prediction]:
    """Predictions by id, in the order of the file.

    Raises:
        FormatError: Unreadable, empty, or an id twice.
    """
    found: dict[str, Prediction] = {}
    for prediction in read_predictions(path):
        if prediction.id in found:
            raise FormatError(
                "the id has two predictions, expected one; predict into a fresh file", Place(path, id=prediction.id)
            )
        found[prediction.id] = prediction
    if not found:
        raise FormatError("the file holds no predictions", Place(path))
    return found


def join(
    predictions: Mapping[str, Prediction], file: Path, data: Iterable[Example], tasks: TaskSet | None, mistakes: int
) -> dict[str, JudgedTask]:
    """Lay predictions beside the rows that they answer, in one pass over the data.

    Args:
        predictions: By id.
        file: Where they come from, for messages.
        data: Gold rows.
        tasks: Tasks whose label sets count; None takes the labels that the predictions themselves list.
        mistakes: How many of the most confident mistakes to keep per task.

    Raises:
        DataError: An id on one side only or twice in the data, a row of another task, no labelled row.
        LabelError: A label outside the task's set.
    """
    judged = {name: _open_task(name, predictions, file, tasks) for name in _task_names(predictions)}
    kept: dict[str, list[tuple[float, int, Mistake]]] = {name: [] for name in judged}
    seen: set[str] = set()
    unanswered: list[str] = []
    for number, example in enumerate(data):
        if example.id in seen:
            raise DataError(f"id {example.id!r} stands in the data twice, expected it once", example.place)
        seen.add(example.id)
        prediction = predictions.get(example.id)
        if prediction is None:
            unanswered.append(example.id)
        elif mistake := _judge(judged[prediction.task], example, prediction, file):
            entry = (mistake.confidence or 0.0, -number, mistake)
            heap = kept[prediction.task]
            if len(heap) < mistakes:
                heapq.heappush(heap, entry)
            elif mistakes:
                heapq.heappushpop(heap, entry)
    _check_ids(unanswered, [id for id in predictions if id not in seen], len(seen), file)
    for name, heap in kept.items():
        judged[name].mistakes = [mistake for _, _, mistake in sorted(heap, key=lambda entry: entry[:2], reverse=True)]
    if not any(task.ids for task in judged.values()):
        raise DataError(f"expected labelled rows, none of the {len(seen)} has a label: there is nothing to score")
    return judged


def _judge(judged: JudgedTask, example: Example, prediction: Prediction, file: Path) -> Mistake | None:
    if example.task is not None and example.task != judged.name:
        raise DataError(
            f"the row is of task {example.task!r}, its prediction in {file} answers {judged.name!r}", example.place
        )
    said = canonical(judged.labels, prediction.label, Place(file, id=prediction.id))
    if example.label is None:
        judged.unlabelled += 1
        return None
    place = example.place if str(example.place) else Place(id=example.id)
    gold = canonical(judged.labels, example.label, place)
    judged.ids.append(example.id)
    judged.gold.append(judged.labels.names.index(gold))
    judged.predicted.append(judged.labels.names.index(said))
    judged.predictions.append(prediction)
    if gold == said:
        return None
    return Mistake(example, judged.task, gold, prediction, prediction.probabilities.get(prediction.label))


def _task_names(predictions: Mapping[str, Prediction]) -> list[str]:
    return list(dict.fromkeys(prediction.task for prediction in predictions.values()))


def _open_task(name: str, predictions: Mapping[str, Prediction], file: Path, tasks: TaskSet | None) -> JudgedTask:
    first = next(prediction for prediction in predictions.values() if prediction.task == name)
    if tasks is None:
        if len(first.probabilities) < 2:
            raise TaskError(
                f"{file} does not list the labels of task {name!r} (no probabilities in id {first.id}); name the task "
                "with --task"
            )
        return JudgedTask(name, LabelSet.model_validate(list(first.probabilities)), None)
    if name not in [task.name for task in tasks]:
        names = ", ".join(task.name for task in tasks)
        raise TaskError(f"{file}, id {first.id}: answers task {name!r}, expected one of {names}; check --task")
    task = tasks[name]
    if task.labels is None:
        raise TaskError(f"task {name!r} is open: it lists no labels, so there is nothing to score")
    return JudgedTask(name, task.labels, task)


def _check_ids(unanswered: list[str], unknown: list[str], rows: int, file: Path) -> None:
    if unanswered:
        raise DataError(
            f"expected a prediction for each of the {rows} rows of the data, {_listed(unanswered)} "
            "have none; `tuyi predict` with the same arguments goes on where it stopped",
            Place(file),
        )
    if unknown:
        raise DataError(
            f"expected predictions for the {rows} rows of the data only, {_listed(unknown)} are not in it; "
            "is it the data that was predicted?",
            Place(file),
        )


def _listed(ids: list[str]) -> str:
    first = ", ".join(ids[:3])
    return f"{len(ids)} (first: {first})"
