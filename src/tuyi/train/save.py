"""The finished model folder: written beside its place, then moved into it whole."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from tuyi.model.adapters import merge_adapter
from tuyi.model.folder import FILE, FolderInfo, write_info
from tuyi.model.write import weight_errors, write_model, write_processor
from tuyi.train.process import first_process, wait_for_all
from tuyi.train.zero import release

__all__ = ["save_model"]


def save_model(trainer: Any, base: Any, out: Path, info: FolderInfo) -> None:
    """Write the trained model into ``out``; every process calls it, the first one writes.

    Args:
        trainer: The trainer, its best weights loaded.
        base: Makes the untouched base model again, on the CPU and in 16 or 32 bits, for merging adapters; None where
            the weights themselves learned.
        out: The model folder. Files of other names in it stay.
        info: What ``tuyi.json`` will say.

    Raises:
        OutputError: The folder cannot be written.
    """
    part = out / ".saving"
    if first_process():
        shutil.rmtree(part, ignore_errors=True)
    wait_for_all()
    with weight_errors(out):
        if base is None:
            trainer.save_model(str(part))
            if first_process():
                write_processor(trainer.processing_class, part)
        else:
            trainer.save_model(str(part / "adapter"))
            if trainer.is_deepspeed_enabled:
                release()
            if first_process():
                write_model(merge_adapter(base(), part / "adapter"), trainer.processing_class, part)
    wait_for_all()
    if first_process():
        with weight_errors(out):
            _move(part, out, info)


def _move(part: Path, out: Path, info: FolderInfo) -> None:
    """Put what was written into its place; ``tuyi.json`` last, since a folder that has it is whole."""
    for arguments in part.rglob("training_args.bin"):
        arguments.unlink()
    write_info(part, info)
    shutil.rmtree(out / "adapter", ignore_errors=True)
    for file in sorted(part.iterdir(), key=lambda path: path.name == FILE):
        os.replace(file, out / file.name)
    part.rmdir()
