"""Room for checkpoints is looked for before the first step."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors import safe_open

from tuyi.errors import OutputError
from tuyi.model.write import weight_errors
from tuyi.task.catalog import TaskSet
from tuyi.train.disk import check_disk, checkpoint_bytes
from tuyi.train.run import train
from tuyi.train.settings import TrainSettings


def settings(**given: object) -> TrainSettings:
    return TrainSettings.model_validate({"precision": "bf16", **given})


def check(out: Path, given: TrainSettings, *, saves: int = 4, keeps_best: bool = False) -> None:
    check_disk(out, given, learning=10**9, everything=2 * 10**9, saves=saves, keeps_best=keeps_best)


def test_a_checkpoint_holds_weights_and_the_optimizer():
    # 16-bit weights, two float32 averages and the lower halves of the weights that learn
    assert checkpoint_bytes(settings(), learning=10, everything=100) == 2 * 100 + 10 * 10
    assert checkpoint_bytes(settings(precision="fp32"), learning=10, everything=100) == 4 * 100 + 8 * 10
    assert checkpoint_bytes(settings(method="lora"), learning=10, everything=100) == 2 * 10 + 10 * 10


def test_a_real_checkpoint_is_as_large(tmp_path: Path, pictures: Path, colours: TaskSet, quick: dict[str, Any]):
    given = TrainSettings(**{**quick, "max_steps": 2, "precision": "fp32"})
    train(pictures, tmp_path / "model", task=colours, settings=given)
    (checkpoint,) = (tmp_path / "model" / "checkpoints").glob("checkpoint-2")
    size = sum((checkpoint / name).stat().st_size for name in ("model.safetensors", "optimizer.pt"))
    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        weights = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    assert weights > 10**5
    assert checkpoint_bytes(given, learning=weights, everything=weights) == pytest.approx(size, rel=0.05)


def test_too_little_room_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=46 * 10**9))
    with pytest.raises(OutputError, match=r"up to 3 checkpoints of 14\.0 GB .* 46\.1 GB in all.* 46\.0 GB free"):
        check(tmp_path, settings())
    check(tmp_path, settings(keep_checkpoints=1))
    with pytest.raises(OutputError, match="up to 3 checkpoints"):
        check(tmp_path, settings(keep_checkpoints=1), keeps_best=True)
    check(tmp_path, settings(), saves=1)
    check(tmp_path, settings(method="lora"))


def test_old_checkpoints_count_as_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=46 * 10**9))
    old = tmp_path / "checkpoints" / "checkpoint-1" / "optimizer.pt"
    old.parent.mkdir(parents=True)
    with old.open("wb") as file:
        file.truncate(10**9)
    check(tmp_path, settings())


def test_a_disk_that_fills_up_while_writing_is_named(tmp_path: Path):
    with pytest.raises(OutputError, match="cannot be written"), weight_errors(tmp_path):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 35067138560 vs 35067138456")
    with pytest.raises(RuntimeError, match="something else"), weight_errors(tmp_path):
        raise RuntimeError("something else")
