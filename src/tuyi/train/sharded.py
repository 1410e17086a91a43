"""FSDP2: weights, gradients and optimizer spread over the processes; saved whole, or in parts that any number reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from tuyi.errors import TrainingError, first_line
from tuyi.train.settings import TrainSettings
from tuyi.train.trainer import PackTrainer

__all__ = ["ShardedTrainer", "gather", "read_parts", "shard", "write_parts"]

_PARTS = "parts"
_SCHEDULE = "scheduler.pt"
_LEARNING = StateDictOptions(ignore_frozen_params=True, strict=False)


def shard(model: Any, settings: TrainSettings, device: torch.device) -> None:
    """Spread a model over all processes, in place: each block of both towers apart, and what is left.

    Weights that learn become float32 and are rounded when they are gathered for a pass; gradients are summed in
    float32. A tower that is frozen stays whole everywhere, so that it can run in some processes and not in others.

    Args:
        model: The adapted transformers model, on the CPU; its weights may have adapters beside them.
        settings: How to train it.
        device: Where it computes.
    """
    half = None if settings.precision == "fp32" else torch.bfloat16
    tower = model.model.visual
    whole: set[nn.Parameter] = set()
    if not any(weight.requires_grad for weight in tower.parameters()):
        tower.to(device)
        whole = set(tower.parameters())
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    for unit in _units(model, keep_tower=bool(whole)):
        for weight in unit.parameters():
            if weight.requires_grad and weight.dtype != torch.float32:
                weight.data = weight.data.float()
        fully_shard(
            unit,
            mesh=mesh,
            # the towers' rotary angles are float32 and have to stay so
            mp_policy=MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False),
            offload_policy=CPUOffloadPolicy() if settings.fsdp_offload else OffloadPolicy(),
            ignored_params=whole,
        )


def _units(model: Any, *, keep_tower: bool) -> Iterator[nn.Module]:
    """The modules whose weights are gathered together, the inner ones first."""
    if not keep_tower:
        yield from model.model.visual.blocks
    yield from model.model.language_model.layers
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head.weight is not embedding.weight:
        yield from (embedding, head)
    yield model


def gather(model: Any, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """The whole weights on the CPU, tied ones once; every process calls it, the first one gets them.

    Args:
        model: The model, or peft's around it; of peft's only the adapters are gathered.
        dtype: Of the result.
        device: Where the parts are put together, one weight at a time.
    """
    adapters = hasattr(model, "peft_config")
    gathered: dict[str, Tensor] = {}
    for name, weight in model.named_parameters():
        if adapters and not weight.requires_grad:
            continue
        part = weight.detach().to(device=device, dtype=dtype)
        value = part.full_tensor() if hasattr(part, "full_tensor") else part
        if distributed.get_rank() == 0:
            gathered[name] = value.to("cpu", copy=True)
    return gathered


def write_parts(folder: Path, model: Any, optimizer: Any) -> None:
    """Write what learns and its optimizer's averages; every process writes its own part."""
    weights, averages = get_state_dict(model, optimizer, options=_LEARNING)
    save({"weights": weights, "optimizer": averages}, checkpoint_id=folder / _PARTS)


def read_parts(folder: Path, model: Any, optimizer: Any = None) -> None:
    """Read back what any number of processes wrote.

    Args:
        folder: A checkpoint.
        model: The sharded model, or peft's around it.
        optimizer: Its optimizer; only weights are read where not given.

    Raises:
        TrainingError: The checkpoint is missing, broken, or of another model.
    """
    if optimizer is None:
        found: dict[str, Any] = {"weights": get_model_state_dict(model, options=_LEARNING)}
    else:
        weights, averages = get_state_dict(model, optimizer, options=_LEARNING)
        found = {"weights": weights, "optimizer": averages}
    try:
        load(found, checkpoint_id=folder / _PARTS)
    except (CheckpointException, RuntimeError, OSError, ValueError) as error:
        raise TrainingError(
            f"checkpoint {folder} cannot be read: {first_line(error)}; "
            "remove it to resume from the one before, or choose another --out"
        ) from error
    if optimizer is None:
        set_model_state_dict(model, found["weights"], options=_LEARNING)
    else:
        set_state_dict(
            model, optimizer, model_state_dict=found["weights"], optim_state_dict=found["optimizer"], options=_LEARNING
        )


class ShardedTrainer(PackTrainer):
    """The trainer of a model that :func:`shard` has spread."""

    def _is_sharded(self) -> bool:
        return True

    def _move_model_to_device(self, model: Any, device: Any) -> None:
        """It is where it belongs."""

    def _save_whole(self, folder: str) -> None:
        half = self._settings.precision != "fp32"
        weights = gather(self.model, torch.bfloat16 if half else torch.float32, self.args.device)
        if self.args.should_save:
            self._save(folder, state_dict=weights)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        write_parts(Path(output_dir), self.model, self._own_optimizer())
        if self.args.should_save:
            assert self.lr_scheduler is not None
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / _SCHEDULE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Weights come with the optimizer, below."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        read_parts(Path(checkpoint), self.model, self._own_optimizer())
        assert self.lr_scheduler is not None
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / _SCHEDULE, weights_only=True))

    def _load_best_model(self) -> None:
        read_parts(Path(str(self.state.best_model_checkpoint)), self.model)

    def _own_optimizer(self) -> Any:
        """The optimizer without accelerate's wrapper."""
        return getattr(self.optimizer, "optimizer", self.optimizer)
