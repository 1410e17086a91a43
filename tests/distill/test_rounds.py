"""``tuyi distill``: which rounds happen, when they stop, what is kept; stopped anywhere and started again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tuyi.cli import app
from tuyi.data import read
from tuyi.data.write import ExampleWriter
from tuyi.distill.label import Labelled
from tuyi.distill.rounds import DistillRun, DistillSettings, distill
from tuyi.errors import ConfigError, DataError, OutputError
from tuyi.evaluate.bootstrap import Interval
from tuyi.model.folder import FolderInfo, read_info, write_info
from tuyi.task.catalog import parse_tasks

LABELS = ["red", "green", "blue"]
TASKS = parse_tasks({"name": "c", "tasks": [{"name": "c", "labels": LABELS}]}, "c")


class Fakes:
    """Stand for label, train, predict and evaluate: leave the files that those leave, and a score for each round."""

    def __init__(self, scores: list[float], kept: list[int] | None = None) -> None:
        self.scores, self.kept = scores, kept or [0, 4, 6, 8, 9, 9, 9]
        self.done: list[tuple[str, int]] = []
        self.given: dict[tuple[str, int], dict[str, Any]] = {}
        self.stop_at: tuple[str, int] | None = None
        self.after = False  # whether the stop comes when the work is done and not yet recorded

    def _begin(self, name: str, number: int, **given: Any) -> None:
        self.given[name, number] = given
        if (name, number) == self.stop_at and not self.after:
            self.stop_at = None
            raise KeyboardInterrupt

    def _end(self, name: str, number: int) -> None:
        if (name, number) == self.stop_at:
            self.stop_at = None
            raise KeyboardInterrupt
        self.done.append((name, number))

    def label(self, data: Path, out: Path, teachers: list[str], **more: Any) -> Labelled:
        number = int(out.parent.name)
        self._begin("label", number, teacher=teachers, **more)
        rows = list(read(data))
        with ExampleWriter(out, "messages", force=True) as writer:
            for row in rows[: self.kept[number]]:
                writer.write(_with_label(row, LABELS[number % 3]))
        labels = {row.id: LABELS[(n < number) * number % 3] for n, row in enumerate(rows)}
        self._end("label", number)
        return Labelled(out, out, len(rows), min(self.kept[number], len(rows)), labels, None, (), out)

    def train(self, data: Path, out: Path, **more: Any) -> SimpleNamespace:
        number = int(out.parent.name)
        ids = [row.id for row in read(data)]
        self._begin("train", number, ids=ids, **more)
        (out / "checkpoints" / "checkpoint-2").mkdir(parents=True, exist_ok=True)
        for name in ("run.json", "loss.jsonl", "config.json"):
            (out / name).write_text("{}")
        (out / "model.safetensors").write_text(f"weights of round {number}")
        write_info(out, FolderInfo(tasks=TASKS, base_model="b"))
        self._end("train", number)
        return SimpleNamespace(steps=3, loss=0.5)

    def predict(self, model: Path, data: Path, out: Path, **more: Any) -> None:
        number = int(out.parent.name)
        self._begin("predict", number, model=model, **more)
        out.write_text(f"predictions of round {number}")
        self._end("predict", number)

    def evaluate(self, predictions: Path, data: Path, out: Path, **more: Any) -> SimpleNamespace:
        number = int(out.parent.name)
        self._begin("judge", number, **more)
        out.mkdir(exist_ok=True)
        (out / "metrics.json").write_text("{}")
        info = read_info(out.parent / "model")
        assert info is not None
        write_info(out.parent / "model", info.model_copy(update={"calibration": {"c": {"temperature": 1.5}}}))
        self._end("judge", number)
        score = self.scores[number]
        return SimpleNamespace(
            overall={"weighted_f1": Interval(score, score - 0.1, score + 0.1)}, metrics=out / "metrics.json"
        )


def _with_label(row, label):
    return replace(row, label=label, soft={label: 1.0})


@pytest.fixture
def fakes(monkeypatch):
    def use(scores: list[float], kept: list[int] | None = None) -> Fakes:
        made = Fakes(scores, kept)
        student = import_module("tuyi.distill.student")
        for name in ("label", "train", "predict", "evaluate"):
            monkeypatch.setattr(student, name, getattr(made, name))
        return made

    return use


@pytest.fixture
def go(tmp_path):
    for name, count in (("labelled", 6), ("unlabelled", 10), ("valid", 3)):
        rows = [f"{n},text {n},{'' if name == 'unlabelled' else LABELS[n % 3]}" for n in range(count)]
        (tmp_path / f"{name}.csv").write_text("id,text,label\n" + "\n".join(rows) + "\n")

    def run(out: str = "model", *, settings: DistillSettings | None = None, **more: Any):
        data = (tmp_path / f"{name}.csv" for name in ("labelled", "unlabelled", "valid"))
        return distill(*data, tmp_path / out, task=TASKS, settings=settings, **more)

    return run


def rounds_of(most: int, **more: Any) -> DistillSettings:
    return DistillSettings(distill={"rounds": most, **more})


STAGES = ["label", "rows", "train", "predict", "judge"]


def test_rounds_stop_when_the_score_stops_rising_and_the_best_is_kept(fakes, go, tmp_path):
    work = fakes([0.5, 0.7, 0.8, 0.75, 0.9])
    done = go(settings=rounds_of(4))
    assert [one.weighted_f1.value for one in done.rounds] == [0.5, 0.7, 0.8, 0.75], "round 4 is never begun"
    assert done.best.number == 2
    out = tmp_path / "model"
    assert (out / "model.safetensors").read_text() == "weights of round 2"
    info = read_info(out)
    assert info is not None
    assert info.temperature("c") == 1.5
    assert not list(out.rglob("checkpoint*"))
    weights = sorted(path.parent.parent.name for path in (out / "rounds").rglob("*.safetensors"))
    assert weights == ["02", "03"], "of the best and of the last round"
    assert work.done == [
        (name, number) for number in range(4) for name in STAGES if name != "rows" and (number or name != "label")
    ]
    page = done.report.read_text(encoding="utf-8")
    assert "+30.0 points of weighted F1 over the labelled rows alone" in page


def test_students_learn_from_the_base_and_the_next_teacher_is_the_last_student(fakes, go, tmp_path):
    work = fakes([0.5, 0.6, 0.7])
    done = go(settings=rounds_of(2), teacher="some/teacher", model="builtin:tiny")
    rounds = tmp_path / "model" / "rounds"
    assert work.given["label", 1]["teacher"] == ["some/teacher"]
    assert work.given["label", 2]["teacher"] == [str(rounds / "01" / "model")]
    assert [work.given["train", number]["model"] for number in range(3)] == ["builtin:tiny"] * 3
    labelled = [str(n) for n in range(6)]
    assert work.given["train", 0]["ids"] == labelled
    assert work.given["train", 2]["ids"] == [*labelled, *(f"unlabelled/{n}" for n in range(6))]
    assert [(one.labelled, one.kept, one.unlabelled) for one in done.rounds] == [(6, 0, None), (6, 4, 10), (6, 6, 10)]
    assert [one.agreement for one in done.rounds] == [None, None, 0.8], "labels of rows 0 and 1 differ"
    rows = list(read(rounds / "02" / "train.jsonl"))
    assert [row.soft for row in rows] == [None] * 6 + [{"blue": 1.0}] * 6


def test_without_a_teacher_the_student_is_its_own(fakes, go, tmp_path):
    work = fakes([0.5, 0.6])
    go(settings=rounds_of(1))
    assert work.given["label", 1]["teacher"] == [str(tmp_path / "model" / "rounds" / "00" / "model")]


def test_the_first_teacher_is_asked_in_its_own_way(fakes, go):
    work = fakes([0.5, 0.6, 0.7])
    settings = DistillSettings(distill={"rounds": 2}, ask={"engine": "api"}, predict={"workers": 3})
    go(settings=settings, teacher="big")
    assert work.given["label", 1]["settings"].predict.engine == "api"
    assert work.given["label", 2]["settings"].predict == settings.predict
    assert work.given["label", 1]["check"].name == "valid.csv"


def test_patience_and_every_model_kept(fakes, go, tmp_path):
    fakes([0.5, 0.7, 0.6, 0.6, 0.9])
    done = go(settings=rounds_of(5, patience=2, keep_all=True))
    assert (len(done.rounds), done.best.number) == (4, 1)
    assert len(list((tmp_path / "model" / "rounds").rglob("*.safetensors"))) == 4


def test_no_round_helps_then_the_labelled_rows_alone_are_the_model(fakes, go, tmp_path):
    fakes([0.8, 0.8])
    assert go(settings=rounds_of(3)).best.number == 0
    assert (tmp_path / "model" / "model.safetensors").read_text() == "weights of round 0"


def test_a_filter_that_keeps_nothing_ends_it(fakes, go):
    work = fakes([0.5, 0.9], kept=[0, 0])
    done = go()
    assert len(done.rounds) == 1
    assert work.done[-1] == ("label", 1)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("stage", [(name, number) for number in range(3) for name in STAGES if name != "rows"][1:])
def test_stopped_anywhere_it_goes_on_and_does_nothing_twice(fakes, go, tmp_path, stage, after):
    work = fakes([0.5, 0.7, 0.8])
    work.stop_at, work.after = stage, after
    with pytest.raises(KeyboardInterrupt):
        go(settings=rounds_of(2))
    assert read_info(tmp_path / "model") is None, "no model before the end"
    before = list(work.done)
    done = go(settings=rounds_of(2))
    assert len(work.done) == len(set(work.done))
    assert work.done == [*before, *work.done[len(before) :]]
    assert [one.weighted_f1.value for one in done.rounds] == [0.5, 0.7, 0.8]
    assert (tmp_path / "model" / "model.safetensors").read_text() == "weights of round 2"
    if stage[0] == "train" and after:
        assert work.given[stage]["resume"] is True


def test_done_it_does_nothing_and_more_rounds_go_on_from_there(fakes, go, tmp_path):
    work = fakes([0.5, 0.7, 0.8, 0.9])
    first = go(settings=rounds_of(1))
    work.done.clear()
    info = read_info(first.out)
    assert info is not None
    write_info(first.out, info.model_copy(update={"calibration": {"c": {"temperature": 3.0}}}))
    assert go(settings=rounds_of(1)).rounds == first.rounds
    assert work.done == []
    again = read_info(first.out)
    assert again is not None
    assert again.temperature("c") == 3.0, "the finished model is its owner's"
    assert go(settings=rounds_of(3)).best.number == 3
    assert work.done[0] == ("label", 2)
    assert (tmp_path / "model" / "model.safetensors").read_text() == "weights of round 3"


def test_files_that_changed_are_told_and_a_removed_round_is_done_again(fakes, go, tmp_path):
    work = fakes([0.5, 0.7, 0.6])
    go(settings=rounds_of(2))
    rounds = tmp_path / "model" / "rounds"
    file = rounds / "01" / "labelled.jsonl"
    text = file.read_text()
    file.write_text(text.replace("green", "blue!"))
    with pytest.raises(
        OutputError, match=r"01/labelled.jsonl has changed since stage label of round 1 wrote it; put it"
    ):
        go(settings=rounds_of(2))
    file.unlink()
    with pytest.raises(OutputError, match=r"labelled.jsonl is gone since stage label"):
        go(settings=rounds_of(2))
    file.write_text(text)
    go(settings=rounds_of(2))
    work.done.clear()
    shutil.rmtree(rounds / "02")
    go(settings=rounds_of(2))
    assert work.done == [(name, 2) for name in STAGES if name != "rows"], "its teacher, the best one, is there"
    work.done.clear()
    shutil.rmtree(rounds / "01")
    done = go(settings=rounds_of(2))
    assert {number for _, number in work.done} == {0, 1, 2}, "round 0 labelled round 1, and its weights were removed"
    assert done.best.number == 1


def test_another_run_or_a_taken_place_is_refused(fakes, go, tmp_path):
    fakes([0.5, 0.7])
    go(settings=rounds_of(1))
    for settings, wrong in (
        (DistillSettings(distill={"rounds": 1}, select={"confidence": 0.5}), "their select is"),
        (DistillSettings(distill={"rounds": 1}, train={"lr": 1e-4}), "their train is"),
    ):
        with pytest.raises(OutputError, match=f"holds other rounds: {wrong} .* this run's is .*; choose another --out"):
            go(settings=settings)
    with pytest.raises(OutputError, match='their teacher is null, this run\'s is "other"'):
        go(settings=rounds_of(1), teacher="other")
    (tmp_path / "taken").mkdir()
    write_info(tmp_path / "taken", FolderInfo(tasks=TASKS, base_model="b"))
    with pytest.raises(OutputError, match="is taken and holds no rounds to go on with"):
        go("taken")


def test_bad_input(fakes, go, tmp_path, monkeypatch):
    fakes([0.5, 0.7])
    with pytest.raises(ConfigError, match="max_pixel"):
        go(settings=DistillSettings(budget={"max_pixel": 1}))
    assert not (tmp_path / "model").exists()
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match="runs in one process; start it without torchrun"):
        go()
    monkeypatch.delenv("RANK")
    (tmp_path / "labelled.csv").write_text("id,text,label\n1,a,red\n2,b\n")
    with pytest.raises(DataError, match="expected 3 columns"):
        go()


def test_the_command_and_its_run_file(fakes, go, tmp_path):
    fakes([0.5, 0.7])
    task = tmp_path / "task.yaml"
    task.write_text(yaml.safe_dump({"name": "c", "labels": LABELS}))
    data = {name: str(tmp_path / f"{name}.csv") for name in ("labelled", "unlabelled", "valid")}
    run_file = tmp_path / "run.yaml"
    run_file.write_text(yaml.safe_dump({**data, "task": str(task), "distill": {"rounds": 1}, "train": {"epochs": 1}}))
    given = ["distill", "--config", str(run_file), "--out", str(tmp_path / "model")]
    run = CliRunner().invoke(app, given)
    assert run.exit_code == 0, run.output
    assert "from round 1" in " ".join(run.output.split())
    assert "4 of 10" in run.output
    assert set(DistillRun.model_fields) >= {"labelled", "ask", "select", "views", "train", "predict", "distill"}


@pytest.mark.slow
def test_killed_hard_in_a_real_run_it_goes_on(tmp_path):
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    (tmp_path / "p").mkdir()
    rows = []
    for n in range(36):
        pixels = rng.integers(0, 90, (56, 56, 3))
        pixels[..., n % 3] += 160
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "p" / f"{n}.png")
        rows.append({"id": str(n), "instruction": "<image>", "output": LABELS[n % 3], "image": [f"p/{n}.png"]})
    parts = {"labelled": rows[:12], "unlabelled": [{**row, "output": ""} for row in rows[12:24]], "valid": rows[24:]}
    for name, part in parts.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(part))
    budget = {"max_pixels": 3136, "max_tokens": 64}
    (tmp_path / "task.yaml").write_text(yaml.safe_dump({"name": "c", "labels": LABELS, "budget": budget}))
    settings = [
        "train.max_steps=8", "train.epochs=9", "train.batch_rows=12", "train.lr=2e-3", "train.tensorboard=false",
        "train.save_steps=2", "select.confidence=0", "distill.rounds=2", "distill.patience=3",
    ]  # fmt: skip
    command = [
        sys.executable, "-m", "tuyi", "distill", "labelled.json", "--unlabelled", "unlabelled.json", "--valid",
        "valid.json", "--task", "task.yaml", "--out", "model", *(item for one in settings for item in ("--set", one)),
    ]  # fmt: skip
    state = tmp_path / "model" / "rounds" / "state.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for stages in (1, 5):
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
        while process.poll() is None and not (
            state.exists() and len(json.loads(state.read_text())["stages"]) >= stages
        ):
            time.sleep(0.05)
        assert process.poll() is None, "it has to be killed in the middle"
        time.sleep(0.5)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    stages = json.loads(state.read_text())["stages"]
    names = [(stage["round"], stage["name"]) for stage in stages]
    assert len(names) == len(set(names)) == 4 + 5 + 5 + 1
    labels = [json.loads(line) for line in (tmp_path / "model/rounds/02/labelled.teachers/1.jsonl").open()]
    assert len({one["id"] for one in labels}) == len(labels) == 12
    assert read_info(tmp_path / "model") is not None
