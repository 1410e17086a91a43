"""The finished model folder: written beside its place, then moved into it whole."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from tuyi.model.folder import FolderInfo, write_info

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
    if trainer.args.should_save:
        shutil.rmtree(part, ignore_errors=True)
    if base is None:
        if trainer.args.bf16 and not trainer.is_deepspeed_enabled and not trainer.is_fsdp_enabled:
            import torch

            trainer.model.to(torch.bfloat16)
        trainer.save_model(str(part))
    else:
        trainer.save_model(str(out / "adapter"))
        if trainer.args.should_save:
            from peft import PeftModel

            merged = PeftModel.from_pretrained(base(), str(out / "adapter")).merge_and_unload()
            merged.save_pretrained(part)
            trainer.processing_class.save_pretrained(part)
    if trainer.args.should_save:
        (part / "training_args.bin").unlink(missing_ok=True)
        write_info(part, info)
        for file in sorted(
            part.iterdir(), key=lambda path: path.name == "tuyi.json"
        ):  # tuyi.json last: then it is whole
            os.replace(file, out / file.name)
        part.rmdir()
