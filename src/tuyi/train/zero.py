"""DeepSpeed: its settings file beside ours, and its checkpoints on another number of processes."""

from __future__ import annotations

import json
import os
import shutil
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tuyi.errors import ConfigError, TrainingError, first_line
from tuyi.train.process import first_process, launched, rank_and_world, wait_for_all
from tuyi.train.settings import TrainSettings

__all__ = ["let_load", "mend_groups", "release", "zero_settings"]

_UNIVERSAL = "universal"


def zero_settings(settings: TrainSettings) -> dict[str, Any]:
    """DeepSpeed's settings for a run, read from its file and brought into line with ours.

    What the file leaves out or to ``auto`` is taken from the training settings. The optimizer that works in CPU memory
    is torch's, which needs no compiler, unless the file asks for DeepSpeed's (``zero_force_ds_cpu_optimizer``).

    Raises:
        ConfigError: DeepSpeed is not installed, the file cannot be read, or it contradicts our settings.
    """
    assert settings.deepspeed is not None
    if find_spec("deepspeed") is None:
        raise ConfigError("train.deepspeed needs DeepSpeed, which is not installed; run: pip install 'tuyi[deepspeed]'")
    if not launched():
        raise ConfigError(
            "train.deepspeed needs torchrun, for one process too: "
            "torchrun --nproc-per-node=1 -m tuyi train …, or leave train.deepspeed out"
        )
    found = _read(settings.deepspeed)
    problems = list(_contradictions(found, settings, world=int(os.environ["WORLD_SIZE"])))
    if problems:
        raise ConfigError("\n  ".join([f"{settings.deepspeed} contradicts the training settings:", *problems]))
    zero = {"stage3_gather_16bit_weights_on_model_save": True} if found["zero_optimization"]["stage"] == 3 else {}
    return {
        "zero_force_ds_cpu_optimizer": False,
        **found,
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.max_grad_norm,
        "bf16": {**found.get("bf16", {}), "enabled": settings.precision == "bf16"},
        "fp16": {"enabled": False},
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {**found["zero_optimization"], **zero},
    }


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"DeepSpeed settings {file} cannot be read as JSON: {first_line(error)}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"DeepSpeed settings {file}: expected an object, found {type(found).__name__}")
    return found


def _contradictions(found: dict[str, Any], settings: TrainSettings, *, world: int) -> Iterator[str]:
    """Every line of the file that says another thing than our settings."""
    wanted = {
        "train_batch_size": (world, "a step's rows are train.batch_rows"),
        "train_micro_batch_size_per_gpu": (1, "a pass's tokens are train.pack_tokens"),
        "gradient_accumulation_steps": (1, "a step has as many passes as its rows need"),
        "gradient_clipping": (settings.max_grad_norm, "train.max_grad_norm decides"),
    }
    for key, (value, why) in wanted.items():
        if found.get(key, "auto") not in ("auto", value):
            yield f'{key}: expected "auto" or {value:g}, found {found[key]}; {why}'
    for key, why in (("optimizer", "tuyi brings its own AdamW"), ("scheduler", "train.schedule decides")):
        if key in found:
            yield f"{key}: expected none; {why}, remove it"
    half = settings.precision == "bf16"
    for key, value in (("bf16", half), ("fp16", False)):
        enabled = found.get(key, {}).get("enabled", "auto")
        if enabled not in ("auto", value):
            said = f'expected "auto" or {json.dumps(value)}, found {json.dumps(enabled)}'
            yield f"{key}.enabled: {said}; this run is in {'bf16' if half else 'fp32'}, train.precision decides"
    zero = found.get("zero_optimization", {})
    if zero.get("stage") not in (1, 2, 3):
        yield f"zero_optimization.stage: expected 1, 2 or 3, found {zero.get('stage')}"
    if zero.get("stage") == 3 and not zero.get("stage3_gather_16bit_weights_on_model_save", True):
        yield "zero_optimization.stage3_gather_16bit_weights_on_model_save: expected true, or no model could be written"


def let_load(checkpoint: Path, config: dict[str, Any]) -> None:
    """Let DeepSpeed load a checkpoint that another number of processes wrote; every process calls it.

    Such a checkpoint is rewritten beside itself as a universal one, which takes as much disk again.

    Args:
        checkpoint: A checkpoint of the trainer.
        config: DeepSpeed's settings of this run; changed.

    Raises:
        TrainingError: It cannot be rewritten, or not be loaded by DeepSpeed with these settings.
    """
    _, world = rank_and_world()
    parts = _parts(checkpoint)
    writers = len(
        {path.name.partition("zero_pp_rank_")[2].partition("_")[0] for path in parts.glob("*_optim_states.pt")}
    )
    if writers == world:
        return
    if config["zero_optimization"].get("round_robin_gradients") or _wrote_round_robin(parts):
        raise TrainingError(
            f"{checkpoint} was written by {writers} processes, this run has {world}: DeepSpeed would mix up the "
            f"optimizer's averages under round_robin_gradients; resume with {writers} processes, or begin a new run "
            "without round_robin_gradients in the DeepSpeed settings"
        )
    universal = checkpoint / f"{parts.name}_{_UNIVERSAL}"
    if first_process() and not universal.exists():
        _rewrite(parts, universal)
    wait_for_all()
    config["checkpoint"] = {**config.get("checkpoint", {}), "load_universal": True}


def _parts(checkpoint: Path) -> Path:
    """The folder that holds DeepSpeed's own files."""
    latest = checkpoint / "latest"
    if not latest.exists():
        raise TrainingError(f"{checkpoint} is no DeepSpeed checkpoint: it has no file 'latest'; choose another --out")
    return checkpoint / latest.read_text(encoding="utf-8").strip()


def _wrote_round_robin(parts: Path) -> bool:
    import torch

    first = min(parts.glob("*model_states.pt"))
    config = torch.load(first, map_location="cpu", mmap=True, weights_only=False)["ds_config"]
    return bool(config["zero_optimization"].get("round_robin_gradients"))


def _rewrite(parts: Path, universal: Path) -> None:
    from deepspeed.checkpoint import ds_to_universal

    unfinished = universal.with_name(f".{universal.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    options = Namespace(
        input_folder=str(parts), output_folder=str(unfinished), num_extract_workers=1, num_merge_workers=1,
        keep_temp_folder=False, strict=True, inject_missing_state=True,
    )  # fmt: skip
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            ds_to_universal.main(options)
    except (OSError, RuntimeError, ValueError, KeyError, AssertionError, NotImplementedError) as error:
        raise TrainingError(
            f"DeepSpeed cannot rewrite {parts} for another number of processes ({first_line(error)}); "
            "resume with as many processes as wrote it"
        ) from error
    (universal.parent / f"latest_{_UNIVERSAL}").write_text(universal.name, encoding="utf-8")
    os.replace(unfinished, universal)


def mend_groups(optimizer: Any, decays: Sequence[float]) -> None:
    """Undo what loading a universal checkpoint under ZeRO-3 does to an optimizer with several groups of weights.

    DeepSpeed 0.19.8 gives all of them one counter of updates, which each then counts on, and the weight decay of the
    first.

    Args:
        optimizer: torch's optimizer, inside DeepSpeed's.
        decays: The weight decay of each group.
    """
    for state in optimizer.state.values():
        if hasattr(state.get("step"), "clone"):
            state["step"] = state["step"].clone()
    for group, decay in zip(optimizer.param_groups, decays, strict=True):
        group["weight_decay"] = decay


def release() -> None:
    """Let models be loaded whole again: as long as ZeRO-3 is on, transformers spreads each one over all processes."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
