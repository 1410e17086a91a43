"""DeepSpeed's settings beside ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tuyi.config import load_settings
from tuyi.errors import ConfigError, TrainingError
from tuyi.train import zero
from tuyi.train.settings import TrainSettings

EXAMPLES = Path(__file__).parents[2] / "examples" / "deepspeed"


@pytest.fixture(autouse=True)
def four_processes(monkeypatch):
    """As torchrun says it, with DeepSpeed there."""
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(zero, "find_spec", lambda name: name)


def settings(file: Path, **more: Any) -> TrainSettings:
    return TrainSettings(deepspeed=file, precision="bf16", **more)


def written(folder: Path, **found: Any) -> Path:
    file = folder / "zero.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 3}, **found}))
    return file


def test_our_examples_say_what_the_training_settings_say():
    files = sorted(EXAMPLES.glob("*.json"), key=lambda file: file.stem)
    assert [file.stem for file in files] == ["zero2", "zero2-offload", "zero3", "zero3-offload"]
    for file in files:
        found = zero.zero_settings(settings(file, max_grad_norm=0.5))
        assert found["gradient_clipping"] == 0.5
        assert found["bf16"]["enabled"] is True
        assert found["train_micro_batch_size_per_gpu"] == found["gradient_accumulation_steps"] == 1
        group = found["zero_optimization"]
        assert group["stage"] == int(file.stem[4])
        assert ("offload_optimizer" in group) == file.stem.endswith("offload")
        assert ("offload_param" in group) == (file.stem == "zero3-offload")
        assert group.get("stage3_gather_16bit_weights_on_model_save", True) is True
        assert found["zero_force_ds_cpu_optimizer"] is False


def test_full_precision_turns_bf16_off(tmp_path):
    found = zero.zero_settings(TrainSettings(deepspeed=written(tmp_path), precision="fp32"))
    assert found["bf16"]["enabled"] is False
    assert found["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True


def test_every_contradiction_is_named_at_once(tmp_path):
    file = written(
        tmp_path,
        train_batch_size=64,
        train_micro_batch_size_per_gpu=8,
        gradient_accumulation_steps=2,
        gradient_clipping=0.3,
        optimizer={"type": "AdamW"},
        scheduler={"type": "WarmupLR"},
        bf16={"enabled": False},
        fp16={"enabled": True},
        zero_optimization={"stage": 3, "stage3_gather_16bit_weights_on_model_save": False},
    )
    with pytest.raises(ConfigError) as caught:
        zero.zero_settings(settings(file))
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert lines == [
        f"{file} contradicts the training settings:",
        'train_batch_size: expected "auto" or 4, found 64; a step\'s rows are train.batch_rows',
        'train_micro_batch_size_per_gpu: expected "auto" or 1, found 8; a pass\'s tokens are train.pack_tokens',
        'gradient_accumulation_steps: expected "auto" or 1, found 2; a step has as many passes as its rows need',
        'gradient_clipping: expected "auto" or 1, found 0.3; train.max_grad_norm decides',
        "optimizer: expected none; tuyi brings its own AdamW, remove it",
        "scheduler: expected none; train.schedule decides, remove it",
        'bf16.enabled: expected "auto" or true, found false; this run is in bf16, train.precision decides',
        'fp16.enabled: expected "auto" or false, found true; this run is in bf16, train.precision decides',
        "zero_optimization.stage3_gather_16bit_weights_on_model_save: expected true, or no model could be written",
    ]


def test_values_that_agree_are_taken(tmp_path):
    file = written(
        tmp_path,
        train_batch_size=4,
        train_micro_batch_size_per_gpu=1,
        gradient_clipping=1.0,
        bf16={"enabled": True},
        fp16={"enabled": "auto", "loss_scale": 0},
        zero_force_ds_cpu_optimizer=True,
    )
    assert zero.zero_settings(settings(file))["zero_force_ds_cpu_optimizer"] is True


@pytest.mark.parametrize("group", [{}, {"stage": 0}, {"stage": "3"}])
def test_the_stage_is_said(tmp_path, group):
    with pytest.raises(ConfigError, match=r"zero_optimization.stage: expected 1, 2 or 3, found"):
        zero.zero_settings(settings(written(tmp_path, zero_optimization=group)))


def test_files_that_are_none(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.json cannot be read as JSON: .*No such file"):
        zero.zero_settings(settings(tmp_path / "none.json"))
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(ConfigError, match=r"broken\.json cannot be read as JSON: Expecting"):
        zero.zero_settings(settings(broken))
    broken.write_text("[]")
    with pytest.raises(ConfigError, match="expected an object, found list"):
        zero.zero_settings(settings(broken))


def test_what_has_to_be_there(tmp_path, monkeypatch):
    file = written(tmp_path)
    with monkeypatch.context() as patch:
        patch.delenv("RANK")
        with pytest.raises(ConfigError, match=r"needs torchrun.*torchrun --nproc-per-node=1 -m tuyi train"):
            zero.zero_settings(settings(file))
    monkeypatch.setattr(zero, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"not installed; run: pip install 'tuyi\[deepspeed\]'"):
        zero.zero_settings(settings(file))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["deepspeed=z.json", "fsdp=true"], "both spread the weights over processes; leave one of them out"),
        (["fsdp_offload=true"], "fsdp_offload is a part of fsdp; set fsdp=true too"),
        (["fsdp=true", "method=qlora"], "qlora keeps the whole model on each GPU; leave fsdp out, or use lora"),
        (["deepspeed=z.json", "method=qlora"], "qlora keeps the whole model on each GPU; leave deepspeed out"),
        (["fsdp=true", "precision=bf16-sr"], "fsdp spreads 32-bit weights.*use precision=bf16"),
        (["deepspeed=z.json", "precision=bf16-sr"], "deepspeed spreads 32-bit weights"),
    ],
)
def test_engines_that_do_not_go_together(given, said):
    with pytest.raises(ConfigError, match=said):
        load_settings(TrainSettings, None, given)


def test_a_checkpoint_of_another_kind_is_named(tmp_path):
    with pytest.raises(TrainingError, match="is no DeepSpeed checkpoint: it has no file 'latest'"):
        zero.let_load(tmp_path, {})


def test_groups_count_their_own_updates_and_keep_their_decay():
    import torch

    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = torch.optim.AdamW([{"params": [weight]} for weight in weights], lr=0.1, weight_decay=0.3)
    step = torch.tensor(5.0)
    for weight in weights:
        optimizer.state[weight] = {"step": step, "exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}
        weight.grad = torch.ones(2)
    zero.mend_groups(optimizer, (0.1, 0.0))
    optimizer.step()
    assert [float(optimizer.state[weight]["step"]) for weight in weights] == [6, 6]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
