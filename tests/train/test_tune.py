"""Searches: what is tried, what stays, going on after a kill, bad input."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import tuyi
from tuyi.cli import app
from tuyi.errors import ConfigError, OutputError, TrainingError
from tuyi.model.folder import read_info
from tuyi.train.progress import read_log
from tuyi.train.run import TrainSummary
from tuyi.train.settings import TrainRun, TrainSettings
from tuyi.train.space import Choices, Range, check_space, default_space, parse_space, placed, starting_values
from tuyi.train.suggest import suggest
from tuyi.train.trials import read_trials
from tuyi.train.tune import TuneRun, TuneSettings

RATES = {"train.lr": "1e-5..1e-2,log"}


class FakeTraining:
    """Stands for ``train``: leaves a folder, and scores a learning rate the better the nearer it is to 1e-3."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.resumed: list[bool] = []
        self.stop_at = 0  # a trial in which the user presses Ctrl-C
        self.diverge_above = math.inf

    def __call__(self, data, out, *, settings, budget, resume, **_) -> TrainSummary:
        self.rates.append(settings.lr)
        self.resumed.append(resume)
        (out / "checkpoints" / "checkpoint-1").mkdir(parents=True, exist_ok=True)
        for name in ("run.json", "loss.jsonl"):
            (out / name).write_text("{}")
        if len(self.rates) == self.stop_at:
            raise KeyboardInterrupt
        if settings.lr > self.diverge_above:
            raise TrainingError("the loss became nan in step 1")
        for name in ("model.safetensors", "tuyi.json"):
            (out / name).write_text(str(settings.lr))
        scores = {"weighted_f1": 1 - abs(math.log10(settings.lr) + 3) / 10}
        return TrainSummary(out, 1, 24, 24, (), 1.0, 1.0, scores, settings)


@pytest.fixture
def fake(monkeypatch):
    training = FakeTraining()
    monkeypatch.setattr(import_module("tuyi.train.tune"), "train", training)
    return training


@pytest.fixture
def search(pictures, colours):
    """A search on the little task; ``space`` and so on are its settings."""

    def run(out, *, settings=None, resume=False, valid=pictures, **more):
        return tuyi.tune(
            pictures, out, task=colours, valid=valid, search=TuneSettings(**{"space": RATES, **more}),
            settings=settings, resume=resume,
        )  # fmt: skip

    return run


def test_a_search_leaves_the_best_model_and_its_run_file(pictures, colours, tmp_path):
    out = tmp_path / "search"
    done = tuyi.tune(
        pictures,
        out,
        task=colours,
        valid=pictures,
        search=TuneSettings(trials=2, space={"train.lr": [2e-3, 1e-9], "budget.max_pixels": [3136, 1568]}),
        settings=TrainSettings(max_steps=4, batch_rows=24, lr=2e-3, eval_steps=2, tensorboard=False),
        budget={"min_pixels": 784},
    )
    assert done.trials[0].values == {"train.lr": 2e-3, "budget.max_pixels": 3136}, "first the settings as they are"
    assert [trial.state for trial in done.trials] == ["done", "done"]
    assert done.trials == tuple(read_trials(out))
    assert done.best.score == max(trial.scores["colours_weighted_f1"] for trial in done.trials)
    info = read_info(out / "best")
    assert info.settings["lr"] == done.best.values["train.lr"]
    assert info.tasks.tasks[0].budget.max_pixels == done.best.values["budget.max_pixels"]
    assert info.scores == done.best.scores
    assert tuyi.load(out / "best").classify(pictures / "red" / "0.png").label in ("red", "green", "blue")
    other = next(trial for trial in done.trials if trial != done.best)
    left = {path.name for path in (out / "trials" / f"{other.number:03d}").iterdir()}
    assert left == {"run.json", "loss.jsonl", "loss.png"}
    assert not list(out.rglob("checkpoint*"))
    run = tuyi.load_settings(TrainRun, out / "best.yaml", out=out / "again")
    assert run.train.lr == done.best.values["train.lr"]
    assert run.budget == {"min_pixels": 784, "max_pixels": done.best.values["budget.max_pixels"]}
    assert (run.data, run.valid) == (pictures, pictures)


def test_a_search_finds_what_is_better(search, fake, tmp_path):
    done = search(tmp_path / "a", trials=14, settings=TrainSettings(lr=3e-5))
    assert fake.rates[0] == 3e-5
    assert len(set(fake.rates)) == len(done.trials) == 14
    assert done.best.score > 0.97
    late, early = (sum(trial.score for trial in part) / 5 for part in (done.trials[-5:], done.trials[:5]))
    assert late > early


def test_the_seed_decides_what_is_tried(search, fake, tmp_path):
    one, same, other = (search(tmp_path / str(i), trials=8, settings=TrainSettings(seed=i // 2)) for i in range(3))
    assert [trial.values for trial in one.trials] == [trial.values for trial in same.trials]
    assert [trial.values for trial in one.trials[1:]] != [trial.values for trial in other.trials[1:]]


@pytest.mark.parametrize("stop_at", [1, 4, 7])
def test_a_stopped_search_goes_on_as_the_unbroken_one(search, fake, tmp_path, stop_at):
    unbroken = search(tmp_path / "a", trials=8)
    fake.rates.clear()
    fake.stop_at = stop_at
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "b", trials=8)
    assert [trial.state for trial in read_trials(tmp_path / "b")] == ["done"] * (stop_at - 1) + ["running"]
    fake.resumed.clear()
    done = search(tmp_path / "b", trials=8, resume=True)
    assert done.trials == unbroken.trials
    assert fake.resumed == [True] + [False] * (8 - stop_at), "the trial that was cut short goes on, others are new"


def test_more_trials_may_be_asked_of_a_finished_search(search, fake, tmp_path):
    unbroken = search(tmp_path / "a", trials=7)
    search(tmp_path / "b", trials=4)
    assert search(tmp_path / "b", trials=7, resume=True).trials == unbroken.trials
    runs = len(fake.rates)
    assert search(tmp_path / "b", trials=7, resume=True).trials == unbroken.trials
    assert len(fake.rates) == runs, "nothing was left to do"


def test_only_the_best_model_stays_or_all_do(search, fake, tmp_path):
    for keep_all in (False, True):
        out = tmp_path / str(keep_all)
        done = search(out, trials=6, keep_all=keep_all)
        models = [path.parent.name for path in sorted((out / "trials").glob("*/model.safetensors"))]
        assert models == [f"{i:03d}" for i in range(1, 7)] if keep_all else [f"{done.best.number:03d}"]
        assert len(list((out / "trials").glob("*/loss.jsonl"))) == 6
        assert not list(out.rglob("checkpoint*"))
        assert float((out / "best" / "model.safetensors").read_text()) == done.best.values["train.lr"]


def test_a_trial_that_diverges_counts_as_failed(search, fake, tmp_path):
    fake.diverge_above = 2e-3
    done = search(tmp_path / "a", trials=12)
    failed = [trial for trial in done.trials if trial.state == "failed"]
    assert failed
    assert all(trial.error == "the loss became nan in step 1" and trial.score is None for trial in failed)
    assert all(trial.values["train.lr"] > 2e-3 for trial in failed)
    assert done.best.values["train.lr"] <= 2e-3
    fake.diverge_above = 0
    with pytest.raises(TrainingError, match="all 2 trials failed, the last one: the loss became nan"):
        search(tmp_path / "b", trials=2)
    assert not list((tmp_path / "b").rglob("checkpoint*"))


def test_a_search_ends_when_everything_was_tried(search, fake, tmp_path):
    done = search(tmp_path / "a", space={"train.lr": "1e-3,1e-4", "train.epochs": "1..2"}, trials=9)
    assert {tuple(trial.values.values()) for trial in done.trials} == {(1e-3, 1), (1e-3, 2), (1e-4, 1), (1e-4, 2)}
    assert len(done.trials) == 4


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("1e-5..3e-4,log", Range(1e-5, 3e-4, log=True)),
        ("1..4", Range(1, 4)),
        ("0.0..0.1", Range(0.0, 0.1)),
        ("4 .. 64, log", Range(4, 64, log=True)),
        ("1,2,3", Choices((1, 2, 3))),
        ([1e-5, "3e-5"], Choices((1e-5, 3e-5))),
        ("true,false", Choices((True, False))),
        ("cosine,linear", Choices(("cosine", "linear"))),
        ("null,2", Choices((None, 2))),
    ],
)
def test_ranges_and_choices(what, expected):
    assert parse_space({"train.x": what}) == parse_space({"train": {"x": what}}) == {"train.x": expected}
    assert parse_space({"train.x": str(expected).replace("None", "null")}) == {"train.x": expected}


def test_every_problem_of_a_space_is_told_before_anything_trains(search, fake, colours, tmp_path):
    wrong = {
        "lr": "1e-5..1e-4",
        "model": "a,b",
        "train.epochs": "3..1",
        "train.lr": "0..1,log",
        "train.batch_rows": "16",
        "train.warmup": "0..lots",
        "train.weight_decay": 0.1,
        "train.betas": [[0.9, 0.99], [0.9, 0.999]],
        "train.seed": "1..5,lin",
        "train.schedule": ["linear", "linear"],
    }
    with pytest.raises(ConfigError) as caught:
        search(tmp_path / "a", space=wrong)
    lines = str(caught.value).splitlines()
    assert lines[0] == "search: 10 problems"
    expected = [
        "lr: expected the name of a setting, train.lr",
        "model: expected the name of a setting, train.… or budget.…",
        "train.epochs: expected LOW..HIGH with LOW below HIGH, found 3..1",
        "train.lr: a range in log scale begins above 0, found 0..1,log",
        "train.batch_rows: expected two different values or more, found 16",
        "train.warmup: expected two numbers as LOW..HIGH or LOW..HIGH,log, found '0..lots'",
        "train.weight_decay: expected LOW..HIGH, LOW..HIGH,log or values to choose from, found 0.1",
        "train.betas: expected plain values to choose from, found [0.9, 0.99]",
        "train.seed: expected two numbers as LOW..HIGH or LOW..HIGH,log, found '1..5,lin'",
        "train.schedule: expected two different values or more, found linear,linear",
    ]
    assert [line.strip() for line in lines[1:]] == expected
    unfit = {
        "train.lrr": "1e-5..1e-4",
        "train.lora.rnk": "4,8",
        "budget.max_pixel": "4000,8000",
        "train.warmup": "0.5..1.5",
        "train.batch_rows": "8.0..32.0",
        "train.schedule": "linear,cosinus",
        "budget.max_pixels": "100..3136",
    }
    with pytest.raises(ConfigError) as caught:
        search(tmp_path / "a", space=unfit)
    found = str(caught.value)
    assert found.startswith("search: 7 problems")
    for part in (
        "train.lrr: unknown setting; did you mean 'lr'?",
        "train.lora.rnk: unknown setting; did you mean 'rank'?",
        "budget.max_pixel: unknown setting; did you mean 'max_pixels'?",
        "train.warmup: Input should be less than 1; found 1.5",
        "train.batch_rows: Input should be a valid integer",
        "train.schedule: Input should be 'cosine', 'linear' or 'constant'; found 'cosinus'",
        "budget: min_pixels 3136 is larger than max_pixels 100",
    ):
        assert part in found
    assert not fake.rates
    assert not (tmp_path / "a").exists()


def test_without_a_space_rate_epochs_and_pixels_are_searched():
    tasks, settings = tuyi.load_tasks("www2025"), TrainSettings()
    space = default_space(settings, tasks, builtin=False)
    assert {key: str(what) for key, what in space.items()} == {
        "train.lr": "3.2e-06..3.2e-05,log",
        "train.epochs": "1..5",
        "budget.max_pixels": "1003520,501760,250880",
    }
    check_space(space, settings, tasks)
    start = starting_values(space, settings, tasks, builtin=False)
    assert start == {"train.lr": 1e-5, "train.epochs": 3, "budget.max_pixels": 1003520}
    assert "train.epochs" not in default_space(TrainSettings(max_steps=9), tasks, builtin=False)
    lora = default_space(TrainSettings(method="lora"), tasks, builtin=False)
    assert str(lora["train.lr"]) == "3.2e-05..0.00032,log"
    for epochs in (0.5, 1, 2, 8):
        assert epochs < 1 or epochs in default_space(TrainSettings(epochs=epochs), tasks, builtin=True)["train.epochs"]


def test_pixels_are_not_halved_below_what_pictures_are_scaled_up_to(colours):
    assert set(default_space(TrainSettings(), colours, builtin=True)) == {"train.lr", "train.epochs"}


def test_values_stand_in_their_places():
    values = {"train.lora.rank": 4, "train.freeze.vision": False, "budget.max_pixels": 784, "train.epochs": 2}
    settings, budget = placed(values, TrainSettings(lr=1e-4), {"max_tokens": 64})
    assert (settings.lora.rank, settings.lora.alpha, settings.freeze.vision) == (4, 16, False)
    assert (settings.lr, settings.epochs, budget) == (1e-4, 2, {"max_tokens": 64, "max_pixels": 784})


def test_the_first_trials_leave_no_large_gap():
    space = parse_space({"train.lr": "1e-5..1e-2,log", "budget.max_pixels": "1000..2000", "train.seed": "1,2,3"})
    for seed in range(20):
        tried = []
        for _ in range(6):
            tried.append((suggest(space, tried, {}, seed), 0.5))
        rates = sorted([1e-5, *(values["train.lr"] for values, _ in tried), 1e-2])
        assert max(high / low for low, high in pairwise(rates)) < 1e-2 / 1e-5 / 10
        assert {values["train.seed"] for values, _ in tried} == {1, 2, 3}


@pytest.mark.parametrize(("what", "ends"), [("1..3", {1, 2, 3}), ("2..4,log", {2, 3, 4}), ("a,b,c,d", set("abcd"))])
def test_every_value_is_reached(what, ends):
    found = parse_space({"train.x": what})["train.x"]
    assert {found.at(i / 1000) for i in range(1000)} == ends
    span = parse_space({"train.x": "0.5..2.5"})["train.x"]
    assert (span.at(0), span.at(0.5)) == (0.5, 1.5)


def test_suggestions_lie_in_the_space():
    space = parse_space({"train.lr": "1.2345e-5..3e-4,log", "train.epochs": "1..3", "train.method": "full,lora"})
    tried = []
    for number in range(20):
        values = suggest(space, tried, {"train.epochs": 2}, seed=7)
        assert all(values[key] in what for key, what in space.items())
        assert number or values["train.epochs"] == 2
        assert float(f"{values['train.lr']:.3g}") == values["train.lr"] or values["train.lr"] == 1.2345e-5
        tried.append((values, values["train.lr"]))
    assert isinstance(tried[0][0]["train.epochs"], int)


def test_folders_and_searches_are_not_mixed_up(search, fake, tmp_path):
    out = tmp_path / "a"
    search(out, trials=1)
    with pytest.raises(OutputError, match=r"a holds a search already; go on with it by --resume"):
        search(out, trials=2)
    with pytest.raises(OutputError, match=r"holds another search: its train.lora.rank is '8', this one's is '4'"):
        search(out, trials=2, resume=True, settings=TrainSettings(lora={"rank": 4}))
    with pytest.raises(OutputError, match=r"its space.train.lr is '1e-05..0.01,log', this one's is '1e-05..0.1,log'"):
        search(out, trials=2, resume=True, space={"train.lr": "1e-5..1e-1,log"})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("")
    with pytest.raises(OutputError, match="b has something in it; expected a new or empty folder"):
        search(tmp_path / "b", trials=1, resume=True)
    with pytest.raises(OutputError, match=r"thesis.txt is a file; expected a folder"):
        search(tmp_path / "b" / "thesis.txt", trials=1)
    (out / "trials.jsonl").write_text('{"number": 1}\n')
    with pytest.raises(OutputError, match=r"(?s)trials.jsonl: 2 problems.*state"):
        search(out, trials=2, resume=True)
    assert len(fake.rates) == 1


def test_what_a_search_needs(search, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"needs validation rows.*--valid FILE; `tuyi split .* PARTS --parts train"):
        search(tmp_path / "a", valid=None)
    with pytest.raises(ConfigError, match=r"tune.trials: Input should be greater than 0; found 0"):
        tuyi.load_settings(TuneRun, None, ["tune.trials=0"], data="x", out="y")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"needs the package optuna: pip install 'tuyi\[tune\]'"):
        search(tmp_path / "a")


@pytest.fixture
def run_file(pictures, tmp_path) -> Path:
    task = tmp_path / "colours.yaml"
    task.write_text("name: colours\nlabels: [red, green, blue]\nbudget: {max_pixels: 3136, max_tokens: 64}\n")
    run = {
        "data": str(pictures),
        "valid": str(pictures),
        "out": str(tmp_path / "search"),
        "task": str(task),
        "train": {"max_steps": 2, "batch_rows": 8, "save_steps": 1, "tensorboard": False},
        "tune": {"trials": 3, "space": {"train.lr": "1e-4..1e-3,log", "train.weight_decay": [0.0, 0.1]}},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(run))
    return tmp_path / "run.yaml"


def test_the_command(run_file, fake, tmp_path):
    command = ["tune", "--config", str(run_file), "--try", "train.lr=1e-5..1e-2,log"]
    fake.stop_at = 2
    stopped = CliRunner().invoke(app, command)
    assert stopped.exit_code == 130
    assert "running" in stopped.output
    assert "go on with the same command and --resume" in stopped.output
    again = CliRunner().invoke(app, [*command, "--trials", "4", "--resume"])
    assert again.exit_code == 0, again.output
    assert "4 trials of train.lr 1e-05..0.01,log, train.weight_decay 0.0,0.1" in again.output
    assert "trial 4 of 4: train.lr=" in again.output
    assert "best model:" in again.output
    scores = [trial.score for trial in read_trials(tmp_path / "search")]
    assert len(scores) == 4
    rows = [line for line in again.output.splitlines() if line.startswith("│")]
    assert [f"{score:.4f}" in row for score, row in zip(sorted(scores, reverse=True), rows)] == [True] * 4
    assert yaml.safe_load((tmp_path / "search" / "best.yaml").read_text())["task"] == str(tmp_path / "colours.yaml")


@pytest.mark.slow
def test_kill_9_in_a_trial_and_resume(run_file, tmp_path):
    def run(out, *more):
        sets = ["--set", "train.epochs=10", "--set", "train.max_steps=30"]
        words = ["tune", "--config", str(run_file), "--out", str(out), "--trials", "2"]
        return [sys.executable, "-m", "tuyi", *words, *sets, *more]

    unbroken, out = tmp_path / "unbroken", tmp_path / "killed"
    assert subprocess.run(run(unbroken), stdout=subprocess.DEVNULL, check=False).returncode == 0
    process = subprocess.Popen(run(out), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (out / "trials" / "002" / "checkpoints" / "checkpoint-8" / "trainer_state.json").exists():
        assert process.poll() is None, "the search ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = subprocess.run(run(out, "--resume"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "resuming from" in done.stdout
    found, expected = (
        [(trial.values, trial.state, trial.score) for trial in read_trials(folder)] for folder in (out, unbroken)
    )
    assert found == expected
    assert [entry["step"] for entry in read_log(out / "trials" / "002" / "loss.jsonl") if "loss" in entry] == [
        *range(1, 31)
    ]
