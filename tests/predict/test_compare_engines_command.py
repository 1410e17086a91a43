"""``tuyi compare-engines``: each engine predicts the same rows; what is printed and what the exit code says."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from tuyi.cli.compare_engines import compare_engines
from tuyi.config import Settings
from tuyi.data import read
from tuyi.data.options import ReadOptions
from tuyi.predict.prediction import Prediction, run_file

ROWS = 200


class Predict(Settings):
    engine: str = "local"
    workers: int = 2


class Run(Settings):
    predict: Predict = Predict()
    budget: dict[str, Any] | None = None
    read: ReadOptions = ReadOptions()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    rows = [{"id": f"r{n}", "text": "x", "label": "a"} for n in range(ROWS)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: Path) -> Callable[..., Result]:
    """The command with an engine that says b for the rows named in ``wrong``, and other budgets where told."""

    def call(*words: str, wrong: tuple[str, ...] = (), other_budget: bool = False) -> Result:
        def predict(model: str, rows: Path, out: Path, *, settings: Predict, **rest: Any) -> Any:
            is_other = settings.engine != "local"
            out.parent.mkdir(parents=True, exist_ok=True)
            made = []
            for row in read(rows, rest["options"]):
                label = "b" if is_other and row.id in wrong else "a"
                chances = {"a": 0.3, "b": 0.7} if label == "b" else {"a": 0.9, "b": 0.1}
                made.append(Prediction(row.id, "t", label, dict.fromkeys(chances, -1.0), chances, notes={"tokens": 7}))
            out.write_text("".join(one.to_json() + "\n" for one in made))
            budget = {"max_pixels": 9 if other_budget and is_other else 1003520, "max_tokens": 4096}
            run_file(out).write_text(json.dumps({"tasks": {"tasks": [{"name": "t", "budget": budget}]}}))
            return SimpleNamespace(out=out, rows=len(made), resumed=0, seconds=4.0)

        module = import_module("tuyi.predict.run")  # by name, tuyi.predict is the function
        monkeypatch.setattr(module, "predict", predict)
        monkeypatch.setattr(module, "PredictRun", Run)
        app = typer.Typer()
        app.command()(compare_engines)
        out = ("--out", str(tmp_path / "engines"))
        return CliRunner().invoke(
            app, ["model", str(data), *out, *(words or ("--engine", "local", "--engine", "vllm"))]
        )

    return call


def test_engines_that_agree(call: Callable[..., Result], tmp_path: Path):
    result = call(wrong=("r7",))
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert "local: 200 rows, 50.00 rows/s without the start" in lines
    assert "vllm: t: max_pixels 1003520, max_tokens 4096" in lines
    assert "vllm against local: 199 of 200 labels agree (99.50%)" in lines
    assert "  id r7: local a (0.9000), vllm b (0.7000)" in lines
    assert "  probabilities of 200 rows differ by 0.6000 at most, 0.0030 in the mean" in lines
    assert sorted(file.name for file in (tmp_path / "engines").glob("*.jsonl")) == ["local.jsonl", "vllm.jsonl"]


def test_engines_that_do_not_agree(call: Callable[..., Result]):
    result = call(wrong=("r7", "r8"))
    assert result.exit_code == 1
    assert "the engines do not agree: expected 99.5% of the labels and equal budgets" in result.output
    words = ("--engine", "local", "--engine", "vllm", "--at-least", "0.9")
    assert call(*words, wrong=("r7", "r8")).exit_code == 0


def test_budgets_must_be_equal(call: Callable[..., Result]):
    result = call(other_budget=True)
    assert result.exit_code == 1
    assert "vllm: t: max_pixels 9, max_tokens 4096" in result.output
    assert "the engines' budgets differ" in result.output


def test_the_first_rows_only(call: Callable[..., Result], tmp_path: Path):
    words = ("--engine", "local", "--engine", "vllm", "--engine", "api", "--limit", "5")
    for _ in range(2):
        result = call(*words)
        assert result.exit_code == 0, result.output
        assert "api against local: 5 of 5 labels agree (100.00%)" in result.output
    assert [row.id for row in read(tmp_path / "engines" / "rows.jsonl")] == [f"r{n}" for n in range(5)]


def test_two_engines_are_needed(call: Callable[..., Result]):
    for words in (("--engine", "local"), ("--engine", "local", "--engine", "local")):
        result = call(*words)
        assert result.exit_code == 2
        assert "name two engines or more, each once" in result.output
