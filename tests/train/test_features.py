"""Features of a frozen tower that are kept change nothing of what is learned, and spare what they should."""

from __future__ import annotations

import pytest
import torch

import tuyi
from tuyi.errors import ConfigError
from tuyi.train.features import OnDevice
from tuyi.train.progress import read_log
from tuyi.train.settings import Freeze, TrainSettings

FROZEN = Freeze(vision=True, projector=True)


def train(pictures, colours, out, monkeypatch, **settings):
    """Losses of a run of six steps, and how many pictures passed the tower in each of its passes."""
    from transformers.models.qwen2_vl import modeling_qwen2_vl

    seen: list[int] = []
    tower = modeling_qwen2_vl.Qwen2VisionTransformerPretrainedModel
    plain = tower.forward

    def counted(self, *args, grid_thw, **more):
        seen.append(len(grid_thw))
        return plain(self, *args, grid_thw=grid_thw, **more)

    with monkeypatch.context() as patch:
        patch.setattr(tower, "forward", counted)
        options = {"epochs": 2, "batch_rows": 8, "lr": 2e-3, "tensorboard": False, "freeze": FROZEN, **settings}
        tuyi.train(pictures, out, task=colours, settings=TrainSettings(**options))
    return [entry["loss"] for entry in read_log(out / "loss.jsonl") if "loss" in entry], seen


def test_each_picture_passes_the_tower_once_and_losses_stay(pictures, colours, tmp_path, monkeypatch):
    expected, always = train(pictures, colours, tmp_path / "none", monkeypatch, keep_features="none")
    found, once = train(pictures, colours, tmp_path / "kept", monkeypatch)
    assert sum(always) == 48
    assert sum(once) == 24
    assert found == pytest.approx(expected, abs=1e-6)


def test_what_has_no_place_is_computed_again(pictures, colours, tmp_path, monkeypatch):
    from tuyi.train import keeping

    monkeypatch.setattr(keeping, "_DEVICE_SHARE", 0.0)
    monkeypatch.setattr(keeping, "OnDevice", lambda most: OnDevice(4 * 5))
    expected, _ = train(pictures, colours, tmp_path / "none", monkeypatch, keep_features="none")
    found, seen = train(pictures, colours, tmp_path / "some", monkeypatch)
    assert sum(seen) == 48 - 5, "five pictures of four visual tokens each have a place"
    assert found == pytest.approx(expected, abs=1e-6)


def test_no_pixels_are_read_for_features_that_are_there(pictures, colours, tmp_path, monkeypatch):
    from tuyi.vision import patches

    read: list[object] = []
    plain = patches.image_patches

    def counted(image, *args, **more):
        read.append(image)
        return plain(image, *args, **more)

    monkeypatch.setattr(patches, "image_patches", counted)
    train(pictures, colours, tmp_path / "kept", monkeypatch, epochs=4)
    assert len(read) == 24


def test_only_what_can_be_kept_is(pictures, colours, tmp_path):
    for settings, why in (
        ({"freeze": Freeze(vision=False, projector=True)}, "the vision tower learns"),
        ({"freeze": FROZEN, "epochs": 1}, "there is one epoch only"),
        ({"freeze": FROZEN, "augment": {"blur": 0.5}}, "changed anew in every epoch"),
    ):
        wrong = TrainSettings(**{"epochs": 2, "keep_features": "device", **settings})
        with pytest.raises(ConfigError, match=f"train.keep_features=device: .*{why}.*; leave it out"):
            tuyi.train(pictures, tmp_path / why[:9], task=colours, settings=wrong)
    wrong = TrainSettings(epochs=2, keep_features="host", freeze=FROZEN)
    with pytest.raises(ConfigError, match=r"keep_features=host is for a GPU; on a CPU expected device or none"):
        tuyi.train(pictures, tmp_path / "host", task=colours, settings=wrong)


@pytest.mark.gpu
@pytest.mark.parametrize("place", ["host", "disk"])
def test_features_come_back_from_the_host_as_they_were(place, tmp_path):
    from tuyi.train.features import OnHost, disk_slabs, memory_slabs

    device, folder = torch.device("cuda"), tmp_path / "features"
    slabs = memory_slabs if place == "host" else disk_slabs(folder)
    kept = OnHost(3 * 1000, device, slabs, None if place == "host" else folder)
    made = {
        f"{number}".encode(): [torch.randn(1000, 64, device=device).bfloat16() for _ in range(2)] for number in range(4)
    }
    assert [kept.admit(key, 1000) for key in made] == [True, True, True, False]
    for key, levels in made.items():
        kept.keep(key, levels)
    found = kept.fetch([b"2", b"0"])
    for key in (b"2", b"0"):
        assert all(torch.equal(one, other) for one, other in zip(found[key], made[key], strict=True))
    kept.close()
    assert not folder.exists()
    with pytest.raises(RuntimeError, match="closed"):
        kept.fetch([b"1"])
