"""Room on the disk for what a run writes, looked for before its first step."""

from __future__ import annotations

import shutil
from pathlib import Path

from tuyi.errors import OutputError
from tuyi.train.memory import gigabytes
from tuyi.train.settings import TrainSettings
from tuyi.whole import output_errors

__all__ = ["check_disk", "checkpoint_bytes"]

_REST = 64 << 20
"""Tokenizer, logs, curve, and what a file system takes for itself."""


def checkpoint_bytes(settings: TrainSettings, *, learning: int, everything: int) -> int:
    """The size of one checkpoint: what learns or, without adapters, all weights, and what the optimizer keeps.

    Args:
        settings: How to train, everything filled in.
        learning, everything: Numbers of weights.
    """
    size = 4 if settings.precision == "fp32" else 2
    # two averages in float32; beside 16-bit weights the lower half of exact ones, or all of it where DeepSpeed does it
    beside = 0 if size == 4 else 4 if settings.deepspeed is not None else 2 if settings.precision == "bf16" else 0
    return size * (everything if settings.method == "full" else learning) + (8 + beside) * learning


def check_disk(
    out: Path, settings: TrainSettings, *, learning: int, everything: int, saves: int, keeps_best: bool
) -> None:
    """Refuse a run whose checkpoints and model the disk cannot hold.

    Args:
        out: The model folder; what lies in its ``checkpoints`` gives way to new ones and counts as free.
        settings: How to train, everything filled in.
        learning, everything: Numbers of weights.
        saves: Checkpoints that the run writes.
        keeps_best: Whether the best one stays beside the newest.

    Raises:
        OutputError: There is too little room.
    """
    one = checkpoint_bytes(settings, learning=learning, everything=everything)
    # an old one goes when the new one is whole
    most = min(saves, settings.keep_checkpoints + 1 + (keeps_best and settings.keep_checkpoints == 1))
    model = (4 if settings.precision == "fp32" else 2) * everything
    with output_errors(out):
        there = sum(file.stat().st_size for file in (out / "checkpoints").rglob("*") if file.is_file())
        free = shutil.disk_usage(out).free + there
    if (need := most * one + model + _REST) > free:
        fewer = "" if most <= 2 else ", train.keep_checkpoints=1 keeps fewer"
        raise OutputError(
            f"{out}: the run writes up to {most} checkpoints of {gigabytes(one)} and a model of {gigabytes(model)}, "
            f"{gigabytes(need)} in all, and the disk has {gigabytes(free)} free; choose another --out{fewer}, "
            "train.method=lora writes small ones"
        )
