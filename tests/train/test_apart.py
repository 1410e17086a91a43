"""A model for each task: trained as it would be alone, gone on with where it was stopped, refused where it is odd."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Job, Processes
from rich.console import Console
from safetensors.torch import load_file

import tuyi
from tuyi.errors import ConfigError, DataError, ModelError, OutputError
from tuyi.model.folder import read_info
from tuyi.model.load import load_frontend, load_model
from tuyi.task.catalog import TaskSet, parse_tasks
from tuyi.train.progress import Teller, read_log
from tuyi.train.settings import TrainSettings
from tuyi.train.single import TrainSummary
from tuyi.train.trials import SearchFolder, Trial

BUDGET = {"max_pixels": 3136, "max_tokens": 64}
TASKS: list[dict[str, Any]] = [
    {"name": "colour", "labels": ["red", "green", "blue"], "budget": BUDGET},
    {"name": "word", "labels": ["yes", "no"], "prompt": "{content}?", "budget": BUDGET},
    {"name": "unasked", "labels": ["x", "y"], "budget": BUDGET},
]
SETTINGS = TrainSettings(
    apart=True, epochs=2, batch_rows=6, save_steps=2, lr=2e-3, tensorboard=False, class_weights={"red": 2, "no": 0.5}
)


def task_set(*names: str) -> TaskSet:
    return parse_tasks({"name": "both", "tasks": [one for one in TASKS if one["name"] in names]}, "both")


LEFT = ("colour/model.safetensors", "run.json", "word/model.safetensors")
BOTH, MORE = task_set("colour", "word"), task_set("colour", "word", "unasked")


def row(number: int) -> dict[str, Any]:
    if number % 2:
        label = ["yes", "no"][number // 2 % 2]
        return {"id": f"r{number}", "task": "word", "text": f"{label} {number}", "label": label}
    colour, at = ["red", "green", "blue"][number // 2 % 3], number // 6
    return {"id": f"r{number}", "task": "colour", "text": "<image>", "images": [f"{colour}/{at}.png"], "label": colour}


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return file


@dataclass(frozen=True)
class Setting:
    """Mixed rows, and a model that has learned nothing."""

    data: Path
    model: str

    def write(self, name: str, rows: list[dict[str, Any]]) -> Path:
        """Rows beside the pictures that they show."""
        return write(self.data.with_name(f"{name}.jsonl"), rows)

    def train(self, out: Path, **more: Any) -> TrainSummary:
        given: dict[str, Any] = {"task": BOTH, "model": self.model, "settings": SETTINGS, **more}
        data = given.pop("data", self.data)
        return tuyi.train(data, out, **given)


@pytest.fixture(scope="module")
def setting(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    torch.set_num_threads(1)
    frontend = load_frontend("builtin:tiny", ["red green blue yes no x y ? 0123456789"] * 3)
    folder = tmp_path_factory.mktemp("start") / "model"
    load_model(frontend, device="cpu").hf.save_pretrained(folder)
    frontend.processor.save_pretrained(folder)
    data = shutil.copytree(pictures, folder.with_name("data")) / "rows.jsonl"
    return Setting(write(data, [row(number) for number in range(24)]), str(folder))


@pytest.fixture(scope="module")
def trained(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> TrainSummary:
    """An unbroken run of both tasks."""
    return setting.train(tmp_path_factory.mktemp("apart") / "model", task=MORE, valid=setting.data)


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(entry["step"], entry["loss"]) for entry in read_log(folder / "loss.jsonl") if "loss" in entry]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("name", ["colour", "word"])
def test_each_model_is_what_training_it_alone_makes(name: str, trained: TrainSummary, setting: Setting, tmp_path: Path):
    mine = setting.write(name, [one for one in map(row, range(24)) if one["task"] == name])
    own = {"colour": {"red": 2.0}, "word": {"no": 0.5}}[name]
    settings = SETTINGS.model_copy(update={"apart": False, "class_weights": own})
    alone = setting.train(tmp_path / "alone", data=mine, task=task_set(name), valid=mine, settings=settings)
    together = trained.out / name
    assert losses(together) == losses(alone.out)
    assert len(losses(together)) == 4
    found, expected = weights(together), weights(alone.out)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    left, right = read_info(together), read_info(alone.out)
    assert left is not None
    assert right is not None
    assert (left.tasks.tasks, left.settings, left.scores) == (right.tasks.tasks, right.settings, right.scores)


def test_the_folder_and_the_summary_say_all(trained: TrainSummary):
    out = trained.out
    assert sorted(path.name for path in out.iterdir()) == ["colour", "run.json", "tuyi.json", "word"]
    info = read_info(out)
    assert info is not None
    assert info.members == {"colour": "colour", "word": "word"}
    assert [task.name for task in info.tasks] == ["colour", "word"], "not the one that nothing was learned of"
    assert info.scores == trained.scores
    assert info.settings["apart"] is True
    assert info.settings["class_weights"] == {"red": 2.0, "no": 0.5}
    assert (trained.steps, trained.rows, trained.rows_done, trained.skipped) == (8, 24, 48, ())
    f1 = [trained.scores[f"{name}_weighted_f1"] for name in ("colour", "word")]
    assert trained.scores["weighted_f1"] == sum(f1) / 2
    assert set(trained.scores) == {
        "weighted_f1",
        *(f"{n}_{s}" for n in info.members for s in ("weighted_f1", "accuracy")),
    }
    last = [losses(out / name)[-1][1] for name in info.members]
    assert trained.loss == pytest.approx(sum(last) / 2)


def test_its_predictions_are_those_that_were_scored(trained: TrainSummary, setting: Setting, tmp_path: Path):
    done = tuyi.predict(trained.out, setting.data, tmp_path / "p.jsonl")
    found = {one.id: one for one in tuyi.read_predictions(done.out)}
    assert len(found) == 24
    for name in ("colour", "word"):
        rows = [one for one in map(row, range(24)) if one["task"] == name]
        right = sum(found[one["id"]].label == one["label"] for one in rows) / len(rows)
        assert right == pytest.approx(trained.scores[f"{name}_accuracy"])


def test_a_built_in_model_has_one_tokenizer_for_all_tasks(setting: Setting, tmp_path: Path):
    settings = SETTINGS.model_copy(update={"max_steps": 1})
    done = setting.train(tmp_path / "m", model="builtin:tiny", settings=settings)
    one, other = (load_frontend(str(done.out / name)).tokenizer.get_vocab() for name in ("colour", "word"))
    assert one == other
    assert "yes" in one
    assert done.scores == {}
    assert tuyi.predict(done.out, setting.data, tmp_path / "p.jsonl").rows == 24


# --- stopped and started again ----------------------------------------------------------------------------------------


def stop_at(monkeypatch: pytest.MonkeyPatch, total: int) -> None:
    """Stop at a step, counted over all tasks."""
    plain, steps = Teller.on_step_end, iter(range(1, 1000))

    def stopping(self: Any, *args: Any, **more: Any) -> None:
        plain(self, *args, **more)
        if next(steps) == total:
            raise KeyboardInterrupt

    monkeypatch.setattr(Teller, "on_step_end", stopping)


@pytest.mark.parametrize("step", [3, 7])
def test_a_stopped_run_goes_on_with_the_task_that_was_half_done(
    step: int, trained: TrainSummary, setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "model"
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(KeyboardInterrupt):
            setting.train(out, task=MORE, valid=setting.data)
    assert not (out / "tuyi.json").exists()
    finished = (out / "colour" / "tuyi.json").exists()
    assert finished is (step > 4)
    before = (out / "colour" / "model.safetensors").stat().st_mtime_ns if finished else 0
    told = io.StringIO()
    done = setting.train(
        out, task=MORE, valid=setting.data, resume=True, console=Console(file=told, width=200, highlight=False)
    )
    assert ("task 1 of 2, colour: finished earlier" in told.getvalue()) is finished
    assert f"resuming from {out / ('word' if finished else 'colour')}/checkpoints/checkpoint-2" in told.getvalue()
    if finished:
        assert (out / "colour" / "model.safetensors").stat().st_mtime_ns == before
        assert not list((out / "colour").glob(".*"))
    for name in ("colour", "word"):
        expected, found = weights(trained.out / name), weights(out / name)
        assert losses(out / name) == losses(trained.out / name)
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert (done.steps, done.scores, done.settings) == (trained.steps, trained.scores, trained.settings)
    assert done.loss == pytest.approx(trained.loss)
    assert done.rows_done == (48 - 36 if finished else 48 - 12)
    assert read_info(out) == read_info(trained.out)


def test_a_finished_run_is_not_done_again(trained: TrainSummary, setting: Setting, monkeypatch: pytest.MonkeyPatch):
    learner = import_module("tuyi.train.learner")
    monkeypatch.setattr(learner, "load_model", lambda *a, **k: pytest.fail("a model was loaded"))
    before = read_info(trained.out)
    done = setting.train(trained.out, task=MORE, valid=setting.data, resume=True)
    assert (done.steps, done.scores, done.loss) == (trained.steps, trained.scores, trained.loss)
    assert (done.rows_done, done.seconds) == (0, 0.0)
    assert read_info(trained.out) == before
    with pytest.raises(OutputError, match="holds a run already; pass --resume"):
        setting.train(trained.out, task=MORE, valid=setting.data)
    joint = SETTINGS.model_copy(update={"apart": False})
    with pytest.raises(OutputError, match=r"another run: its settings.apart is 'True', this run's is 'False'"):
        setting.train(trained.out, task=MORE, valid=setting.data, settings=joint, resume=True)


# --- what it is not for -----------------------------------------------------------------------------------------------


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = import_module("tuyi.train.learner")
    monkeypatch.setattr(learner, "load_model", lambda *a, **k: pytest.fail("a model was loaded"))


@pytest.mark.usefixtures("untrained")
def test_tasks_that_cannot_be_trained_apart(setting: Setting, tmp_path: Path):
    rows = [row(number) for number in range(24)]
    colours = setting.write("c", [one for one in rows if one["task"] == "colour"])
    with pytest.raises(ConfigError, match=r"needs several tasks, and word is the only one; leave train\.apart out"):
        setting.train(tmp_path / "a", task=task_set("word"))
    with pytest.raises(ConfigError, match="needs rows of several tasks, all rows are of colour; leave it out"):
        setting.train(tmp_path / "b", data=colours)
    dots = parse_tasks({"name": "d", "tasks": [{**TASKS[0], "name": ".."}, TASKS[1]]}, "d")
    with pytest.raises(ConfigError, match=r"none can be called \.\.; rename"):
        setting.train(tmp_path / "c", task=dots)
    assert not (tmp_path / "c").exists()
    odd = {"id": "odd", "task": "unasked", "text": "?", "label": "x"}
    with pytest.raises(DataError, match="1 validation rows are of task unasked, which has no rows to learn from"):
        setting.train(tmp_path / "d", task=MORE, valid=setting.write("v", [*rows, odd]))
    with pytest.raises(DataError, match="1 row cannot be used"):
        setting.train(tmp_path / "e", data=setting.write("w", [*rows, odd]))


@pytest.mark.usefixtures("untrained")
def test_settings_that_do_not_go_with_it(setting: Setting, tmp_path: Path):
    with pytest.raises(ConfigError, match="apart makes a model of each; leave one out"):
        tuyi.load_settings(TrainSettings, None, ["apart=true", "task_weights={colour: 1, word: 2}"])
    wrong = SETTINGS.model_copy(update={"class_weights": {"redd": 2.0}})
    with pytest.raises(ConfigError, match="class_weights: 'redd' is no label of colour, word; the nearest is 'red'"):
        setting.train(tmp_path / "a", settings=wrong)
    early = SETTINGS.model_copy(update={"early_stop": 1})
    colours = setting.write("c", [one for one in map(row, range(24)) if one["task"] == "colour"])
    with pytest.raises(ConfigError, match="early_stop needs validation rows of every task, word has none"):
        setting.train(tmp_path / "b", settings=early, valid=colours)


@pytest.mark.usefixtures("untrained")
def test_nothing_is_overwritten(setting: Setting, tmp_path: Path):
    (tmp_path / "m" / "word").mkdir(parents=True)
    (tmp_path / "m" / "word" / "run.json").write_text("{}")
    with pytest.raises(OutputError, match=r"m/word holds a run already"):
        setting.train(tmp_path / "m")
    assert (tmp_path / "m" / "word" / "run.json").read_text() == "{}"


def test_the_folder_is_no_single_model(trained: TrainSummary, setting: Setting, tmp_path: Path):
    out = trained.out
    message = rf"{out} holds a model for each task.*: name one of {out}/colour, {out}/word"
    joint = SETTINGS.model_copy(update={"apart": False})
    with pytest.raises(ModelError, match=message):
        setting.train(tmp_path / "t", model=str(out), task=None, settings=joint)
    with pytest.raises(ModelError, match=message):
        tuyi.export(out, tmp_path / "e")
    assert not list(tmp_path.iterdir())
    assert tuyi.export(out / "word", tmp_path / "e").tasks == ("word",)


def test_a_search_keeps_its_best_models_without_their_checkpoints(tmp_path: Path):
    trials = [Trial(number=number, state="done", values={}, score=number / 2) for number in (1, 2)]
    folder = SearchFolder(tmp_path, keep_all=False)
    for trial in trials:
        for name in ("colour", "word"):
            (folder.of(trial) / name / "checkpoints" / "checkpoint-2").mkdir(parents=True)
            (folder.of(trial) / name / "model.safetensors").touch()
        (folder.of(trial) / "run.json").touch()
    folder.tidy(trials, trials[1], {"valid": "v"})
    left = [
        path.relative_to(tmp_path).as_posix() for path in sorted((tmp_path / "trials").rglob("*")) if path.is_file()
    ]
    assert left == ["trials/001/run.json", *(f"trials/002/{name}" for name in LEFT)]
    assert not list((tmp_path / "trials").rglob("checkpoints"))


def test_the_command(setting: Setting, tmp_path: Path):
    from typer.testing import CliRunner

    from tuyi.cli import app

    task = tmp_path / "both.yaml"
    task.write_text(json.dumps({"name": "both", "tasks": TASKS[:2]}), encoding="utf-8")
    words = ["train", str(setting.data), "--task", str(task), "--out", str(tmp_path / "m"), "--model", setting.model]
    for value in ("apart=true", "max_steps=1", "tensorboard=false"):
        words += ["--set", f"train.{value}"]
    done = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert "task 2 of 2, word: 12 rows" in done.output
    assert "2 steps in" in done.output
    done = CliRunner().invoke(app, ["check", str(setting.data), "--task", str(task), "--model", str(tmp_path / "m")])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, ["doctor", "--model", str(tmp_path / "m")], env={"COLUMNS": "200"})
    assert "qwen2_vl" in done.output


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp", "zero3"])
def test_several_processes_train_one_task_after_the_other(
    engine: str, trained: TrainSummary, setting: Setting, tmp_path: Path
):
    if engine.startswith("zero") and find_spec("deepspeed") is None:
        pytest.skip("needs DeepSpeed")
    settings = SETTINGS.model_dump(mode="json") | {"fsdp": engine == "fsdp", "workers": 1}
    if engine.startswith("zero"):
        settings["deepspeed"] = str(Path(__file__).parents[2] / "examples" / "deepspeed" / f"{engine}.json")
    more = {"model": setting.model, "valid": setting.data}
    job = Job(setting.data, tmp_path / "m", {"name": "both", "tasks": TASKS}, settings, more)
    assert Processes().train(job, 2) == ""
    for name in ("colour", "word"):
        expected, found = (dict(losses(folder / name)) for folder in (trained.out, job.out))
        assert found == pytest.approx(expected, rel=2e-3, abs=2e-3)
    assert sorted(path.name for path in job.out.iterdir()) == ["colour", "run.json", "tuyi.json", "word"]
    assert tuyi.predict(job.out, setting.data, tmp_path / "p.jsonl").rows == 24
