"""Folds: every labelled row gets its label distribution from a model that was not shown it, nor a row like it."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuyi.data.example import Example
from tuyi.data.stratify import Stratum, divide
from tuyi.data.write import ExampleWriter
from tuyi.errors import DataError
from tuyi.model.folder import FILE
from tuyi.predict.prediction import Prediction, read_predictions
from tuyi.train.claim import RECORD
from tuyi.whole import output_errors, write_whole

if TYPE_CHECKING:
    from rich.console import Console

    from tuyi.predict.settings import PredictSettings
    from tuyi.task.catalog import TaskSet
    from tuyi.train.settings import TrainSettings

__all__ = ["FoldJob", "Folds", "divide_folds", "predict_folds"]


@dataclass(frozen=True, slots=True)
class Folds:
    """Which fold each row is held out in.

    Args:
        count: How many folds there are.
        of: For each row its fold, from 0.
        unlearnable: Rows whose label no other fold has a row of, so that no model could learn it for them.
    """

    count: int
    of: Sequence[int]
    unlearnable: frozenset[int]


def divide_folds(strata: Sequence[Stratum], groups: Sequence[int], count: int, seed: int) -> Folds:
    """Divide rows into folds, every task and label evenly, groups kept whole.

    Args:
        strata: Task and label of each row.
        groups: Rows with the same number stay in one fold.
        count: How many folds.
        seed: Another seed gives another division.

    Raises:
        DataError: There are fewer groups than folds.
    """
    if (different := len(set(groups))) < count:
        raise DataError(
            f"{count} folds need at least {count} rows that share no picture and no text, found {different} among "
            f"{len(groups)} labelled rows; use fewer folds, or more rows"
        )
    of = divide(strata, groups, [1 / count] * count, seed)
    rows, held_out = Counter(strata), Counter(zip(strata, of))
    unlearnable = frozenset(
        row for row, (stratum, fold) in enumerate(zip(strata, of)) if held_out[stratum, fold] == rows[stratum]
    )
    return Folds(count, of, unlearnable)


@dataclass(frozen=True, slots=True)
class FoldJob:
    """What every fold is done with.

    Args:
        out: Folder for the folds' files; what a finished fold needs no more is removed.
        model: What each fold's model starts from.
        tasks: What is asked.
        train: How each fold's model is trained.
        predict: How its held-out rows are labelled.
        budget: Budget settings to use instead of the task's.
        keep_models: Whether the folds' models stay.
        console: A rich console for progress.
    """

    out: Path
    model: str
    tasks: TaskSet
    train: TrainSettings
    predict: PredictSettings
    budget: Mapping[str, Any]
    keep_models: bool
    console: Console


def predict_folds(rows: Iterable[Example], folds: Folds, job: FoldJob) -> dict[str, Prediction]:
    """Train on all folds but one and predict that one, for each in turn; finished work is not done again.

    Args:
        rows: The labelled rows, in the order of ``folds.of``; gone through once a file that is missing.
        folds: Their division.
        job: How.

    Returns:
        The prediction of each row that some fold's model could learn the label of, by id.
    """
    found: dict[str, Prediction] = {}
    for fold in range(folds.count):
        name = f"fold {fold + 1} of {folds.count}"
        out = job.out / f"{fold + 1}-predictions.jsonl"
        wanted = _held_out(folds, fold)
        done = _whole(out, len(wanted))
        if done is None:
            learned = len(folds.of) - sum(one == fold for one in folds.of)
            job.console.print(f"{name}: {learned} rows to learn, {len(wanted)} held out", highlight=False)
            done = _run_fold(rows, folds, fold, job)
        else:
            job.console.print(f"{name}: finished earlier", highlight=False)
        found.update({prediction.id: prediction for prediction in done})
    return found


def _held_out(folds: Folds, fold: int) -> set[int]:
    return {row for row, one in enumerate(folds.of) if one == fold and row not in folds.unlearnable}


def _whole(out: Path, expected: int) -> list[Prediction] | None:
    """A fold's predictions where they are all there."""
    if expected == 0:
        return []
    if not out.with_suffix(".done").exists():
        return None
    return list(read_predictions(out))


def _run_fold(rows: Iterable[Example], folds: Folds, fold: int, job: FoldJob) -> list[Prediction]:
    from tuyi.predict.run import predict
    from tuyi.train.run import train
    from tuyi.train.single import free_memory

    held_out = _held_out(folds, fold)
    learned = job.out / f"{fold + 1}-learned.jsonl"
    asked = job.out / f"{fold + 1}-asked.jsonl"
    _write(learned, (row for row, one in zip(rows, folds.of) if one != fold))
    _write(asked, (replace(row, label=None) for number, row in enumerate(rows) if number in held_out))
    model, out = job.out / f"{fold + 1}-model", job.out / f"{fold + 1}-predictions.jsonl"
    if not (model / FILE).exists():
        train(
            learned,
            model,
            task=job.tasks,
            model=job.model,
            settings=job.train,
            budget=job.budget,
            resume=(model / RECORD).exists(),
            console=job.console,
        )
        free_memory()
    predict(model, asked, out, settings=job.predict)
    free_memory()
    write_whole(out.with_suffix(".done"), "")
    with output_errors(model):
        if not job.keep_models:
            shutil.rmtree(model)
        learned.unlink()
        asked.unlink()
    return list(read_predictions(out))


def _write(file: Path, rows: Iterator[Example]) -> None:
    """The rows of a fold, once; what its models learn is the given label, whatever else a row brings."""
    if file.exists():
        return
    with ExampleWriter(file, "messages") as writer:
        for row in rows:
            writer.write(replace(row, soft=None, extra={}))
