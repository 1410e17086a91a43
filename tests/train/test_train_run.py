"""Training runs: the folder they leave, resuming, adapters, freezing, bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib import import_module

import pytest
import torch

import tuyi
from tuyi.data.example import Example, Image, Text, Turn
from tuyi.errors import ConfigError, DataError, OutputError, TaskError, TrainingError
from tuyi.model.folder import read_info
from tuyi.train.progress import read_log
from tuyi.train.settings import Freeze, LoraSettings, TrainSettings


def losses(folder):
    return [(entry["step"], entry["loss"]) for entry in read_log(folder / "loss.jsonl") if "loss" in entry]


@pytest.fixture(scope="module")
def trained(pictures, colours, tmp_path_factory):
    """An unbroken run of six steps."""
    out = tmp_path_factory.mktemp("run") / "model"
    settings = TrainSettings(epochs=2, batch_rows=8, save_steps=2, lr=2e-3, tensorboard=False)
    return tuyi.train(pictures, out, task=colours, settings=settings)


def test_the_folder_opens_in_plain_transformers_with_equal_logits(trained, pictures, colours):
    from PIL import Image as Pillow
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from tuyi.encode.pack import pack
    from tuyi.model.forward import to_device

    plain = AutoModelForImageTextToText.from_pretrained(trained.out).eval()
    theirs = AutoProcessor.from_pretrained(trained.out)
    file = pictures / "red" / "0.png"
    content = [{"type": "image"}, {"type": "text", "text": ""}]
    text = theirs.apply_chat_template([{"role": "user", "content": content[:1]}], add_generation_prompt=True)
    inputs = theirs(text=[text], images=[Pillow.open(file)], return_tensors="pt")
    ours = tuyi.load(trained.out)
    row = ours.encoder.encode(Example("x", (Image(file),)), labelled=False)
    assert inputs.input_ids[0].tolist() == row.ids.tolist()
    batch = to_device(pack([row], [ours.encoder.labels(ours.tasks.tasks[0])]), ours.model.spec, ours.model.device)
    with torch.inference_mode():
        expected = plain(**inputs).logits[0, -1].log_softmax(-1)
        found = ours.model.hf(batch=batch)[0].log_softmax(-1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert read_info(trained.out).tasks == colours
    assert not [path for path in trained.out.iterdir() if path.name.startswith(".")]


def test_the_folder_remembers_how_it_was_made(trained):
    info = read_info(trained.out)
    assert info.base_model == "builtin:tiny"
    assert info.settings["lr"] == 2e-3
    assert info.settings["freeze"] == {"vision": False, "projector": False, "language": False}
    assert set(info.versions) == {"tuyi", "torch", "transformers", "accelerate", "peft"}
    assert (trained.out / "loss.png").stat().st_size > 1000
    assert trained.rows == 24
    assert trained.rows_done == 48
    assert len(losses(trained.out)) == trained.steps == 6
    assert losses(trained.out)[-1][1] < losses(trained.out)[0][1]


def stop_at(monkeypatch, step):
    from tuyi.train.progress import Teller

    plain = Teller.on_step_end

    def stopping(self, args, state, control, **more):
        plain(self, args, state, control, **more)
        if state.global_step == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(Teller, "on_step_end", stopping)


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_stopped_run_goes_on_with_the_same_losses(trained, pictures, colours, settings, tmp_path, monkeypatch, step):
    out = tmp_path / "model"
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(KeyboardInterrupt):
            tuyi.train(pictures, out, task=colours, settings=settings)
    tuyi.train(pictures, out, task=colours, settings=settings, resume=True)
    expected, found = losses(trained.out), losses(out)
    assert [step for step, _ in found] == [1, 2, 3, 4, 5, 6]
    torch.testing.assert_close(
        torch.tensor([loss for _, loss in found]), torch.tensor([loss for _, loss in expected]), rtol=1e-5, atol=1e-6
    )


def test_a_checkpoint_cut_short_is_passed_over(trained, pictures, colours, settings, tmp_path, monkeypatch):
    out = tmp_path / "model"
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            tuyi.train(pictures, out, task=colours, settings=settings)
    state = out / "checkpoints" / "checkpoint-4" / "trainer_state.json"
    state.write_text(state.read_text()[:50])
    (out / "checkpoints" / "checkpoint-4" / "model.safetensors").write_bytes(b"cut")
    tuyi.train(pictures, out, task=colours, settings=settings, resume=True)
    assert [step for step, _ in losses(out)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_kill_9_and_resume_from_the_command_line(trained, pictures, tmp_path):
    out, task = tmp_path / "model", tmp_path / "colours.yaml"
    task.write_text("name: colours\nlabels: [red, green, blue]\nbudget: {max_pixels: 3136, max_tokens: 64}\n")
    sets = ["train.epochs=40", "train.batch_rows=8", "train.save_steps=4", "train.lr=2e-3", "train.tensorboard=false"]
    command = [sys.executable, "-m", "tuyi", "train", str(pictures), "--task", str(task), "--out", str(out)]
    command += [word for one in sets for word in ("--set", one)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (out / "checkpoints" / "checkpoint-8").exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "resuming from" in done.stdout
    assert [step for step, _ in losses(out)] == list(range(1, 121))


@pytest.mark.slow
def test_two_processes_learn_what_one_does(trained, pictures, tmp_path):
    out, task = tmp_path / "model", tmp_path / "colours.yaml"
    task.write_text("name: colours\nlabels: [red, green, blue]\nbudget: {max_pixels: 3136, max_tokens: 64}\n")
    sets = ["train.epochs=2", "train.batch_rows=8", "train.save_steps=2", "train.lr=2e-3", "train.tensorboard=false"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29631", "-m", "tuyi"]
    command += ["train", str(pictures), "--task", str(task), "--out", str(out)]
    command += [word for one in sets for word in ("--set", one)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    expected, found = losses(trained.out), losses(out)
    torch.testing.assert_close(
        torch.tensor([loss for _, loss in found]), torch.tensor([loss for _, loss in expected]), rtol=2e-4, atol=2e-4
    )
    assert read_info(out) is not None


def test_adapters_are_merged_into_the_folder(trained, pictures, tmp_path):
    from peft import PeftModel

    from tuyi.model.load import load_frontend, load_model

    settings = TrainSettings(
        method="lora", lora=LoraSettings(rank=4), epochs=1, batch_rows=8, lr=1e-2, tensorboard=False
    )
    out = tmp_path / "lora"
    tuyi.train(pictures, out, model=str(trained.out), settings=settings)
    frontend = load_frontend(str(trained.out))
    base = load_model(frontend, device="cpu").hf
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    merged = load_model(load_frontend(str(out)), device="cpu").hf.state_dict()
    expected = PeftModel.from_pretrained(base, out / "adapter").merge_and_unload().state_dict()
    changed = {name for name in before if not torch.equal(before[name], merged[name])}
    assert changed
    assert all(torch.allclose(expected[name], merged[name], atol=1e-6) for name in before)
    assert not any("visual" in name for name in changed), "the tower is frozen for a model that is not built in"
    assert read_info(out).base_model == "builtin:tiny"


@pytest.mark.parametrize(
    ("freeze", "learns", "stays"),
    [
        (Freeze(vision=True, projector=True), "model.language_model", "model.visual"),
        (Freeze(vision=True, projector=False, language=True), "model.visual.merger", "model.visual.blocks"),
        (Freeze(vision=False, projector=True, language=True), "model.visual.blocks", "model.visual.merger"),
    ],
)
def test_frozen_parts_keep_their_weights(twins, freeze, learns, stays):
    import copy

    from tuyi.train.trainable import freeze_parts

    for family in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
        model = copy.deepcopy(twins(family).reference)
        freeze_parts(model, freeze)
        open_ = {name for name, weight in model.named_parameters() if weight.requires_grad}
        assert any(name.startswith(learns) for name in open_)
        assert not any(name.startswith(stays) for name in open_)


def test_validation_scores_early_stop_and_best(pictures, colours, tmp_path):
    settings = TrainSettings(
        epochs=8, batch_rows=8, lr=2e-3, eval_steps=2, early_stop=2, keep_checkpoints=1, tensorboard=True
    )
    out = tmp_path / "model"
    done = tuyi.train(pictures, out, task=colours, valid=pictures, settings=settings)
    scored = [entry for entry in read_log(out / "loss.jsonl") if "eval_weighted_f1" in entry]
    assert len(scored) >= 2
    assert done.scores["weighted_f1"] == max(entry["eval_weighted_f1"] for entry in scored)
    assert list((out / "logs").iterdir())
    predicted = tuyi.predict(out, pictures, tmp_path / "p.jsonl")
    found = {one.id: one.label for one in tuyi.read_predictions(predicted.out)}
    right = sum(found[row.id] == row.label for row in tuyi.read(pictures)) / 24
    assert abs(right - done.scores["colours_accuracy"]) < 1e-9


def test_open_answers_with_pictures_video_and_turns(tmp_path, picture, clip):
    from tuyi.data.write import ExampleWriter

    history = (Turn("user", (picture(), Text("谁？"))), Turn("assistant", (Text("两个人。"),)))
    with ExampleWriter(tmp_path / "chat.jsonl", "messages") as writer:
        writer.write(Example("1", (Text("他们在做什么？"), picture(40, 40, 4)), label="在踢球。", history=history))
        writer.write(Example("2", (clip, Text("Why?")), label="Because."))
        writer.write(Example("3", (Text("Hello"),), label="Hi."))
    for model in ("builtin:tiny", "builtin:tiny-qwen2.5", "builtin:tiny-qwen3"):
        out = tmp_path / model.partition(":")[2]
        settings = TrainSettings(max_steps=2, batch_rows=3, lr=1e-3, tensorboard=False)
        done = tuyi.train(
            tmp_path / "chat.jsonl", out, task="chat", model=model, settings=settings,
            budget={"max_pixels": 8192, "min_pixels": 1024, "video_max_pixels": 8192},
        )  # fmt: skip
        assert [step for step, _ in losses(out)] == [1, 2][: done.steps]
        assert read_info(out).tasks.name == "chat"


def test_a_loss_that_is_no_number_names_the_rows(pictures, colours, tmp_path, monkeypatch):
    monkeypatch.setattr(
        import_module("tuyi.train.trainer"), "answer_loss", lambda found, batch, soft: found.sum() * float("nan")
    )
    settings = TrainSettings(epochs=1, batch_rows=8, tensorboard=False)
    with pytest.raises(TrainingError, match=r"loss became nan in step 1; its rows: \w+/\d\.png"):
        tuyi.train(pictures, tmp_path / "model", task=colours, settings=settings)


def test_bad_rows_stop_before_the_weights_load_or_are_named(pictures, colours, tmp_path, monkeypatch):
    import shutil

    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    (data / "red" / "0.png").write_bytes(b"")
    (data / "purple").mkdir()
    shutil.copy(data / "red" / "1.png", data / "purple" / "x.png")
    with monkeypatch.context() as patch:
        patch.setattr(
            import_module("tuyi.train.learner"), "load_model", lambda *a, **k: pytest.fail("the weights were loaded")
        )
        with pytest.raises(DataError, match=r"(?s)2 rows cannot be used.*purple.*0\.png.*--on-bad-row skip"):
            tuyi.train(data, tmp_path / "model", task=colours, settings=TrainSettings(max_steps=1))
    assert not (tmp_path / "model" / "run.json").exists(), "a run that was never begun leaves its folder free"
    settings = TrainSettings(max_steps=1, tensorboard=False)
    done = tuyi.train(data, tmp_path / "model", task=colours, settings=settings, on_bad_row="skip")
    assert len(done.skipped) == 2
    assert done.rows == 23


def test_folders_and_runs_are_not_mixed_up(trained, pictures, colours, settings, tmp_path):
    with pytest.raises(OutputError, match="holds a run already; pass --resume"):
        tuyi.train(pictures, trained.out, task=colours, settings=settings)
    other = settings.model_copy(update={"lr": 1e-5})
    with pytest.raises(OutputError, match=r"another run: its settings.lr is '0.002', this run's is '1e-05'"):
        tuyi.train(pictures, trained.out, task=colours, settings=other, resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file; expected a folder"):
        tuyi.train(pictures, tmp_path / "file", task=colours, settings=settings)
    with pytest.raises(TaskError, match="has no task of its own"):
        tuyi.train(pictures, tmp_path / "none", settings=settings)


def test_settings_that_do_not_go_together(pictures, colours, tmp_path):
    with pytest.raises(ConfigError, match="early_stop needs validation rows"):
        tuyi.train(pictures, tmp_path / "a", task=colours, settings=TrainSettings(early_stop=1, max_steps=1))
    with pytest.raises(ConfigError) as caught:
        tuyi.load_settings(TrainSettings, None, ["lr=-1", "epoch=3", "freeze.vision=maybe", "precision=fp8"])
    lines = str(caught.value).splitlines()
    assert lines[0] == "settings: 4 problems"
    assert any("epoch: unknown setting; did you mean 'epochs'?" in line for line in lines)
    assert any("freeze.vision" in line for line in lines)
    with pytest.raises(ConfigError, match="nothing would be trained"):
        tuyi.load_settings(TrainSettings, None, ["freeze={vision: true, projector: true, language: true}"])


def test_the_run_file_says_a_whole_run(pictures, tmp_path):
    from typer.testing import CliRunner

    from tuyi.cli import app

    task = tmp_path / "colours.yaml"
    task.write_text("name: colours\nlabels: [red, green, blue]\n")
    run = {
        "data": str(pictures),
        "out": str(tmp_path / "model"),
        "task": str(task),
        "budget": {"max_pixels": 3136},
        "train": {"max_steps": 1, "tensorboard": False},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(run))
    done = CliRunner().invoke(app, ["train", "--config", str(tmp_path / "run.yaml"), "--set", "train.batch_rows=4"])
    assert done.exit_code == 0, done.output
    assert "1 steps" in done.output
    info = read_info(tmp_path / "model")
    assert info.settings["batch_rows"] == 4
    assert info.tasks.tasks[0].budget.max_pixels == 3136
