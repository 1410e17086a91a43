"""Which rows an epoch draws and what each of them weighs, where some labels or tasks have far fewer than others."""

from __future__ import annotations

import difflib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuyi.encode.encoder import Encoder
from tuyi.encode.survey import Survey
from tuyi.errors import ConfigError
from tuyi.task.catalog import TaskSet
from tuyi.task.task import Task
from tuyi.train.reasons import ReasonTask
from tuyi.train.settings import TrainSettings

__all__ = ["Answers", "Draw", "Order", "order_of", "read_answers", "weights_of", "weights_with_reasons"]

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What each row asks and answers, as numbers. A row that asks for a reason goes with the label that it explains.

    Args:
        tasks: int64, shape (n,): the row's task, by its place in the task set.
        labels: int64, shape (n,): the row's label, by its place among the task's labels; -1 in an open task.
        reasons: bool, shape (n,): the rows that ask for the reason.
        soft: By row number, float64, shape (L,), summing to 1: a teacher's distribution over the L labels.
    """

    tasks: NDArray[np.int64]
    labels: NDArray[np.int64]
    reasons: NDArray[np.bool_]
    soft: Mapping[int, NDArray[np.float64]]

    def asked(self, tasks: TaskSet) -> list[tuple[int, Task]]:
        """The tasks that have rows, with their places."""
        return [(number, task) for number, task in enumerate(tasks) if (self.tasks == number).any()]


def read_answers(rows: Survey, tasks: TaskSet) -> Answers:
    """Tasks, labels and soft labels of all rows, in one pass over them."""
    numbers = {task.name: number for number, task in enumerate(tasks)}
    places = {task.name: {name: at for at, name in enumerate(task.labels.names)} for task in tasks if task.labels}
    soft: dict[int, NDArray[np.float64]] = {}
    count = len(rows)
    found = Answers(np.empty(count, np.int64), np.full(count, -1, np.int64), np.zeros(count, bool), soft)
    for index, row in enumerate(rows.rows):
        task = tasks.of(row)
        label = row.label
        if isinstance(task, ReasonTask):
            task, label, found.reasons[index] = tasks[task.explains], row.rationale, True
        found.tasks[index] = numbers[task.name]
        if task.labels is not None:
            assert label is not None, "a survey for training has labelled rows alone"
            found.labels[index] = places[task.name][task.labels.canonical(label)]
            if row.soft is not None:
                soft[index] = np.asarray(task.labels.distribution(row.soft))
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Draw:
    """What an epoch draws from one task.

    Args:
        count: Rows an epoch.
        groups: Row numbers of each label, or of the whole task; the groups take turns.
    """

    count: int
    groups: tuple[Rows, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """The rows of each epoch, by its number, in which every task has its share and every group of a task the same.

    A group's rows come in shuffled rounds, each row once a round, and a round goes on in the next epoch: few rows
    repeat evenly, and of many each is met in time. Which rows an epoch has follows from seed and number alone.

    Args:
        seed: Of the rounds, and of the order within an epoch.
        draws: One for each task.
    """

    seed: int
    draws: tuple[Draw, ...]

    def __call__(self, epoch: int) -> Rows:
        drawn: list[Rows] = []
        for draw in self.draws:
            turns = epoch * draw.count
            for place, rows in enumerate(draw.groups):
                begin, end = (_turns(at, place, len(draw.groups)) for at in (turns, turns + draw.count))
                drawn.append(self._rounds(rows, begin, end, len(drawn)))
        return np.random.default_rng([self.seed, epoch]).permutation(np.concatenate(drawn))

    def _rounds(self, rows: Rows, begin: int, end: int, group: int) -> Rows:
        """The rows from ``begin`` to ``end`` of a group's endless sequence of rounds."""
        first, last = begin // len(rows), -(-end // len(rows))
        # 1 +: a seed's trailing zeros count for nothing
        seeds = ([self.seed, 1 + group, 1 + number] for number in range(first, last))
        rounds = [rows[:0], *(np.random.default_rng(seed).permutation(rows) for seed in seeds)]
        return np.concatenate(rounds)[begin - first * len(rows) : end - first * len(rows)]


def _turns(at: int, place: int, count: int) -> int:
    """How many of the first ``at`` turns of ``count`` that take turns fall to the one at ``place``."""
    return (at - place + count - 1) // count


def order_of(answers: Answers, tasks: TaskSet, settings: TrainSettings) -> Order | None:
    """The order of rows that ``sampling`` and ``task_weights`` ask for; None for every row once an epoch.

    Raises:
        ConfigError: Weights that do not name exactly the tasks that have rows; a task without labels to balance.
    """
    if settings.sampling == "plain" and settings.task_weights is None:
        return None
    asked = answers.asked(tasks)
    if settings.sampling == "balanced":
        _need_labels(asked, "sampling: balanced")
    draws = []
    for (number, _), count in zip(asked, _counts(answers, asked, settings.task_weights)):
        rows = np.flatnonzero(answers.tasks == number)
        labels = answers.labels[rows] if settings.sampling == "balanced" else np.zeros_like(rows)
        draws.append(Draw(count, tuple(rows[labels == label] for label in np.unique(labels))))
    return Order(settings.seed, tuple(draws))


def _need_labels(asked: Sequence[tuple[int, Task]], setting: str) -> None:
    if without := [task.name for _, task in asked if task.labels is None]:
        raise ConfigError(
            f"{setting} goes by label, and task {without[0]} is open: it has none; leave the setting or its rows out"
        )


def _counts(answers: Answers, asked: Sequence[tuple[int, Task]], weights: Mapping[str, float] | None) -> list[int]:
    """Rows of each task in an epoch, by largest remainders; as many as it has where nobody weighs the tasks."""
    if weights is None:
        return [int((answers.tasks == number).sum()) for number, _ in asked]
    names = [task.name for _, task in asked]
    if unknown := [name for name in weights if name not in names]:
        raise ConfigError(f"task_weights: expected the tasks that have rows, {', '.join(names)}; found {unknown[0]!r}")
    if missing := [name for name in names if name not in weights]:
        raise ConfigError(f"task_weights: task {missing[0]} has rows and no weight; give it one, or leave its rows out")
    total = len(answers.tasks)
    exact = np.asarray([weights[name] for name in names])
    exact *= total / exact.sum()
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: total - counts.sum()]] += 1
    if not counts.all():
        raise ConfigError(
            f"task_weights: task {names[int(counts.argmin())]} gets less than one of an epoch's {total} rows; raise it"
        )
    return [int(count) for count in counts]


def weights_of(rows: Survey, answers: Answers, tasks: TaskSet, settings: TrainSettings) -> array[float]:
    """Weight of each row in the loss: its own times its label's in ``class_weights``.

    ``balanced`` weighs, in each task, a label by rows / (labels that have rows * rows of the label), which is
    scikit-learn's ``compute_class_weight``.

    Raises:
        ConfigError: A label of no task, or a task without labels.
    """
    if settings.class_weights is None:
        return rows.weights
    asked = answers.asked(tasks)
    _need_labels(asked, "class_weights")
    given = None if settings.class_weights == "balanced" else _by_label(tasks, settings.class_weights)
    factors = np.ones(len(rows))
    for number, task in asked:
        mine = answers.tasks == number
        labels = answers.labels[mine]
        if given is None:
            counts = np.bincount(labels[~answers.reasons[mine]], minlength=labels.max() + 1)
            factors[mine] = counts.sum() / (np.count_nonzero(counts) * counts[labels])
        else:
            assert task.labels is not None
            each = np.asarray([given.get((task.name, name), 1.0) for name in task.labels.names])
            factors[mine] = each[labels]
    return array("d", np.asarray(rows.weights) * factors)


def weights_with_reasons(
    weights: array[float], rows: Survey, answers: Answers, encoder: Encoder, weight: float | None
) -> array[float]:
    """Weights in the loss, those of reasons such that the mean loss of a reason's tokens counts λ times what the mean
    loss of its label's tokens does: w λ n_label / n_reason.

    Args:
        weights: As if each answer token counted the same.
        rows, answers, encoder: Of the run.
        weight: λ.
    """
    if not answers.reasons.any():
        return weights
    assert weight is not None, "without it there are no reasons"
    found = np.asarray(weights).copy()
    for number, task in answers.asked(encoder.tasks):
        if task.labels is not None:
            mine = answers.reasons & (answers.tasks == number)
            taught = (encoder.answers(task).taught(name, None) for name in task.labels.names)
            lengths = np.asarray([len(ids) for ids in taught])[answers.labels[mine]]
            found[mine] *= weight * lengths / np.asarray(rows.supervised)[mine]
    return array("d", found)


def _by_label(tasks: TaskSet, weights: Mapping[str, float]) -> dict[tuple[str, str], float]:
    """The weights by task and label, each label in the spelling of every task that has it."""
    closed = [(task.name, task.labels) for task in tasks if task.labels is not None]
    found: dict[tuple[str, str], float] = {}
    for text, weight in weights.items():
        keys = [(name, labels.canonical(text)) for name, labels in closed if text in labels]
        if not keys:
            near = [label for _, labels in closed if (label := labels.nearest(text))]
            nearest = difflib.get_close_matches(text, near, n=1, cutoff=0)
            hint = f"; the nearest is {nearest[0]!r}" if nearest else ""
            names = ", ".join(name for name, _ in closed)
            raise ConfigError(f"class_weights: {text!r} is no label of {names}{hint}")
        if twice := [label for name, label in keys if (name, label) in found]:
            raise ConfigError(f"class_weights: {text!r} weighs {twice[0]!r} a second time; give each label one weight")
        found.update(dict.fromkeys(keys, weight))
    return found
