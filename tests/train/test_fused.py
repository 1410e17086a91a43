"""Fused products in a training run: what is learned and saved is what it is without them."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import tuyi
from tuyi.model import fast, gated, low_rank, norms, products, write
from tuyi.model.load import load_frontend, load_model
from tuyi.task.catalog import TaskSet
from tuyi.train import learner
from tuyi.train.progress import read_log
from tuyi.train.settings import TrainSettings


@pytest.fixture
def fuses(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A CPU says that it is a GPU with kernels; the operators then do what they do there, by torch. How many fused."""
    found: list[int] = []

    def counted(fuse: Any) -> Any:
        return lambda part: found.append(count := fuse(part)) or count

    monkeypatch.setattr(fast, "choose_kernels", lambda *_, **__: {"tower": "some kernel"})
    monkeypatch.setattr(norms, "fuse_norms", lambda model: None)  # triton's, for GPUs alone
    monkeypatch.setattr(products, "refused", lambda device: None)
    monkeypatch.setattr(gated, "fuse_gated_mlps", counted(gated.fuse_gated_mlps))
    monkeypatch.setattr(low_rank, "fuse_adapters", counted(low_rank.fuse_adapters))
    return found


def learned(pictures: Path, colours: TaskSet, settings: TrainSettings, out: Path) -> tuple[list[float], dict[str, Any]]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tuyi.train(pictures, out, task=colours, valid=pictures, settings=settings)
    finally:
        torch.set_num_threads(before)
    losses = [entry["loss"] for entry in read_log(out / "loss.jsonl") if "loss" in entry]
    return losses, load_model(load_frontend(str(out)), device="cpu").hf.state_dict()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_same_is_learned_and_saved(
    method: str, pictures: Path, colours: TaskSet, quick: dict[str, Any], tmp_path: Path,
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    settings = TrainSettings(**quick, method=method)
    right, weights = learned(pictures, colours, settings, tmp_path / "plain")
    fused: list[int] = request.getfixturevalue("fuses")
    parted: list[bool] = []

    def watched(hf: Any) -> dict[str, Any] | None:
        parted.append((state := write.parted(hf)) is not None)
        return state

    monkeypatch.setattr(import_module("tuyi.train.trainer"), "parted", watched)
    found, made = learned(pictures, colours, settings, tmp_path / "fused")
    assert sum(fused) > 0
    assert parted == ([True] * 4 if method == "full" else []), "three checkpoints and the model"
    np.testing.assert_allclose(found, right, rtol=1e-4)
    assert made.keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(made[name], weight, rtol=0, atol=5e-4, msg=name)


@pytest.mark.parametrize("spread", [{"fsdp": True}, {"deepspeed": Path("zero3.json")}, {}])
def test_spread_weights_stay_with_torch(spread: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    asked: list[bool] = []
    monkeypatch.setattr(fast, "tune", lambda part, *, spread, **_: asked.append(spread) or [])
    settings = SimpleNamespace(**{"precision": "bf16", "compile": False, "fsdp": False, "deepspeed": None, **spread})
    towers = SimpleNamespace(visual=None, language_model=None)
    model = SimpleNamespace(hf=SimpleNamespace(model=towers))
    learner._tune(SimpleNamespace(settings=settings, model=model, tower_learns=True), "cpu")  # type: ignore[arg-type]
    assert asked == [bool(spread)] * 2
