"""Where the features of a frozen vision tower are kept between epochs."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tuyi.errors import ConfigError
from tuyi.train.features import Features, OnDevice, OnHost, disk_slabs, memory_slabs

if TYPE_CHECKING:
    from tuyi.train.fit import Fitting
    from tuyi.train.learner import Learner

__all__ = ["Keeper", "keeper"]

_DEVICE_SHARE, _HOST_SHARE, _DISK_SHARE = 0.05, 0.4, 0.5
"""Of the GPU's memory, the host's free memory and the free disk."""


@dataclass(frozen=True, slots=True, eq=False)
class Keeper:
    """Where features are kept.

    Args:
        features: The place; None where no epoch could use them, or no place has room.
        device_bytes: What it will take of the device's memory.
        told: A line that says so; empty where there is nothing to say.
    """

    features: Features | None = None
    device_bytes: int = 0
    told: str = ""


def keeper(given: Fitting, learner: Learner, *, world: int) -> Keeper:
    """Find a place for features.

    Raises:
        ConfigError: A place was asked for that cannot be used.
    """
    settings, spec = learner.settings, learner.model.spec
    why_not = _why_not(learner, world)
    if settings.keep_features == "none" or why_not:
        if settings.keep_features in ("device", "host", "disk"):
            raise ConfigError(f"train.keep_features={settings.keep_features}: {why_not}; leave it out")
        return Keeper()
    count = sum(given.rows.patches) // spec.merge_size**2
    config = learner.model.hf.config
    levels = 1 + len(getattr(config.vision_config, "deepstack_visual_indexes", ()))
    width = levels * config.text_config.hidden_size * learner.model.hf.dtype.itemsize
    device = learner.model.device
    room = _rooms(given, device, world)
    fits = [place for place, size in room.items() if count * width <= size]
    place = settings.keep_features if settings.keep_features != "auto" else next(iter(fits), None)
    if place is None:
        return Keeper(told=f"features of the vision tower need {count * width / 1e9:.1f} GB and are not kept: no room")
    if place not in room:
        raise ConfigError(f"train.keep_features={place} is for a GPU; on a CPU expected device or none")
    most = min(count, room[place] // width)
    told = f"features of the frozen vision tower are kept for later epochs ({count * width / 1e9:.1f} GB, {place})"
    if place == "device":
        return Keeper(OnDevice(most), most * width, told)
    if place == "host":
        return Keeper(OnHost(most, device, memory_slabs), 0, told)
    folder = given.out / f".features-{os.getpid()}"
    return Keeper(OnHost(most, device, disk_slabs(folder), folder), 0, told)


def _why_not(learner: Learner, world: int) -> str | None:
    settings = learner.settings
    if learner.tower_learns:
        return "the vision tower learns, so its features change"
    if settings.augment is not None:
        return "pictures are changed anew in every epoch"
    if settings.deepspeed is not None:
        return "sharded weights are gathered by all processes or by none"
    if settings.epochs <= 1:
        return "there is one epoch only"
    return None


def _rooms(given: Fitting, device: torch.device, world: int) -> dict[str, int]:
    """Bytes to keep features in, by place, the quickest first."""
    processes = max(1, min(world, torch.cuda.device_count()))
    memory = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // processes
    if device.type != "cuda":
        return {"device": int(memory * _HOST_SHARE)}
    return {
        "device": int(torch.cuda.get_device_properties(device).total_memory * _DEVICE_SHARE),
        "host": int(memory * _HOST_SHARE),
        "disk": int(shutil.disk_usage(given.out).free * _DISK_SHARE) // processes,
    }
