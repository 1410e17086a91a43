"""Folds: even, groups whole, rare labels told; trained and predicted once each, whatever interrupts them."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tuyi.data import Example, Text, read
from tuyi.distill.folds import FoldJob, divide_folds, predict_folds
from tuyi.errors import DataError
from tuyi.predict.prediction import Prediction
from tuyi.predict.settings import PredictSettings
from tuyi.task import TaskSet
from tuyi.train.settings import TrainSettings

TASKS = TaskSet.model_validate({"name": "two", "tasks": [{"name": "two", "labels": ["a", "b", "rare"]}]})


def test_folds_are_even_and_keep_groups_whole() -> None:
    strata = [("two", "ab"[n % 2]) for n in range(40)]
    groups = [n // 4 if n < 12 else n for n in range(40)]
    folds = divide_folds(strata, groups, 4, seed=0)
    assert sorted(Counter(folds.of).values()) == [10, 10, 10, 10]
    assert sorted(Counter(zip(strata, folds.of)).values()) == [5] * 8
    assert all(len({folds.of[n] for n in range(first, first + 4)}) == 1 for first in (0, 4, 8))
    assert folds.unlearnable == frozenset()
    assert divide_folds(strata, groups, 4, seed=0) == folds
    assert divide_folds(strata, groups, 4, seed=1) != folds


def test_labels_that_no_other_fold_has_are_told() -> None:
    strata = [("two", "a")] * 10 + [("two", "single")] + [("two", "pair")] * 2 + [("two", "three")] * 3
    groups = [*range(10), 10, 11, 11, 13, 14, 15]
    folds = divide_folds(strata, groups, 5, seed=0)
    assert folds.unlearnable == {10, 11, 12}
    assert len({folds.of[n] for n in (13, 14, 15)}) == 3


def test_more_folds_than_different_rows() -> None:
    with pytest.raises(
        DataError, match="5 folds need at least 5 rows that share no picture and no text, found 2 among 6"
    ):
        divide_folds([("two", "a")] * 6, [0, 0, 0, 3, 3, 3], 5, seed=0)


class Fakes:
    """`train` and `predict` that do nothing but remember what they were given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.learned: dict[str, list[str]] = {}
        self.asked: dict[str, list[tuple[str, str | None]]] = {}
        self.resumed: list[bool] = []
        self.broken: str | None = None
        monkeypatch.setattr(importlib.import_module("tuyi.train.run"), "train", self.train)
        monkeypatch.setattr(importlib.import_module("tuyi.predict.run"), "predict", self.predict)

    def train(self, data: Path, out: Path, *, resume: bool, **more: Any) -> None:
        self.learned[out.name] = [row.id for row in read(data)]
        self.resumed.append(resume)
        out.mkdir(exist_ok=True)
        (out / "run.json").write_text("{}")
        if out.name == self.broken:
            raise KeyboardInterrupt
        (out / "tuyi.json").write_text("{}")

    def predict(self, model: Path, data: Path, out: Path, **more: Any) -> None:
        rows = list(read(data))
        self.asked[out.name] = [(row.id, row.label) for row in rows]
        shares = {"a": 0.5, "b": 0.25, "rare": 0.25}
        with out.open("w") as file:
            for row in rows:
                file.write(Prediction(row.id, "two", "a", shares, shares).to_json() + "\n")


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    return Fakes(monkeypatch)


def rows() -> list[Example]:
    labels = ["ab"[n % 2] for n in range(12)] + ["rare"]
    return [
        Example(f"r{n}", (Text(f"say {n}"),), label=label, soft={"a": 1.0}, extra={"messages": n})
        for n, label in enumerate(labels)
    ]


def job(out: Path, *, keep_models: bool = False) -> FoldJob:
    console = Console(quiet=True)
    return FoldJob(out, "builtin:tiny", TASKS, TrainSettings(), PredictSettings(), {}, keep_models, console)


def test_each_row_is_predicted_by_a_model_that_has_not_seen_it(tmp_path: Path, fakes: Fakes) -> None:
    examples = rows()
    folds = divide_folds([("two", str(row.label)) for row in examples], list(range(13)), 3, seed=0)
    found = predict_folds(examples, folds, job(tmp_path))
    assert set(found) == {f"r{n}" for n in range(12)}
    for fold in range(3):
        learned = set(fakes.learned[f"{fold + 1}-model"])
        held_out = {f"r{n}" for n, one in enumerate(folds.of) if one == fold}
        assert learned == {row.id for row in examples} - held_out
        assert {id for id, _ in fakes.asked[f"{fold + 1}-predictions.jsonl"]} == held_out - {"r12"}
    assert {label for asked in fakes.asked.values() for _, label in asked} == {None}
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == sorted(f"{n}-predictions.{kind}" for n in (1, 2, 3) for kind in ("done", "jsonl"))


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path, fakes: Fakes) -> None:
    examples = rows()
    folds = divide_folds([("two", str(row.label)) for row in examples], list(range(13)), 3, seed=0)
    fakes.broken = "2-model"
    with pytest.raises(KeyboardInterrupt):
        predict_folds(examples, folds, job(tmp_path))
    assert list(fakes.learned) == ["1-model", "2-model"]
    fakes.broken = None
    fakes.learned.clear()
    again = predict_folds(examples, folds, job(tmp_path, keep_models=True))
    assert list(fakes.learned) == ["2-model", "3-model"]
    assert fakes.resumed == [False, False, True, False]
    assert len(again) == 12
    assert (tmp_path / "3-model").exists()
    fakes.learned.clear()
    assert predict_folds(examples, folds, job(tmp_path)) == again
    assert not fakes.learned


def test_fold_files_hold_what_a_model_learns_and_no_more(tmp_path: Path, fakes: Fakes) -> None:
    examples = rows()
    folds = divide_folds([("two", str(row.label)) for row in examples], list(range(13)), 3, seed=0)
    fakes.broken = "1-model"
    with pytest.raises(KeyboardInterrupt):
        predict_folds(examples, folds, job(tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "1-learned.jsonl").read_text().splitlines()]
    assert len(lines) == sum(one != 0 for one in folds.of)
    assert all(set(line) == {"id", "messages"} for line in lines)
