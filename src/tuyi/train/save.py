"""The finished model folder: written beside its place, then moved into it whole."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from tuyi.model.folder import FILE, FolderInfo, write_info
from tuyi.train.process import first_process, wait_for_all

__all__ = ["save_model"]


def save_model(trainer: Any, base: Any, out: Path, info: FolderInfo) -> None:
    """Write the trained model into ``out``; every process calls it, the first one writes.

    Args:
        trainer: The trainer, its best weights loaded.
        base: Makes the untouched base model again, for merging adapters; None where the weights themselves learned.
        out: The model folder. Files of other names in it stay.
        info: What ``tuyi.json`` will say.
    """
    part = out / ".saving"
    if first_process():
        shutil.rmtree(part, ignore_errors=True)
    wait_for_all()
    if base is None:
        if trainer.args.bf16 and not trainer.is_deepspeed_enabled and not trainer.is_fsdp_enabled:
            import torch

            trainer.model.to(torch.bfloat16)
        trainer.save_model(str(part))
    else:
        trainer.save_model(str(out / "adapter"))
        if first_process():
            from peft import PeftModel

            merged = PeftModel.from_pretrained(base(), str(out / "adapter")).merge_and_unload()
            merged.save_pretrained(part)
            trainer.processing_class.save_pretrained(part)
    wait_for_all()
    if first_process():
        (part / "training_args.bin").unlink(missing_ok=True)
        write_info(part, info)
        # tuyi.json last: a folder that has it is whole
        for file in sorted(part.iterdir(), key=lambda path: path.name == FILE):
            os.replace(file, out / file.name)
        part.rmdir()
