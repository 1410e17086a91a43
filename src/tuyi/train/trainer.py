"""transformers' Trainer with our steps, our loss and our evaluation."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import Trainer

from tuyi.encode.pack import Pack
from tuyi.errors import TrainingError
from tuyi.model.forward import Batch, to_device
from tuyi.train.process import rank_and_world
from tuyi.train.steps import Steps
from tuyi.vision.spec import VisionSpec

__all__ = ["PackTrainer", "answer_loss", "last_checkpoint"]


def answer_loss(logits_KV: Tensor, batch: Batch) -> Tensor:
    """Weighted sum of the cross-entropy of the supervised tokens; a scalar."""
    losses_K = F.cross_entropy(logits_KV, batch.targets, reduction="none")
    return (losses_K * batch.weights).sum()


class PackTrainer(Trainer):
    """One item of the data set is one optimizer step: the packs that this process computes for it.

    Args:
        steps: The run.
        spec: The model's vision facts.
        evaluation: Scores the validation rows; returns metrics named ``eval_…``.
        options: As for ``Trainer``; gradient accumulation stays 1, since a step brings its own passes.
    """

    def __init__(
        self, *, steps: Steps, spec: VisionSpec, evaluation: Callable[[], dict[str, float]] | None, **options: Any
    ) -> None:
        # transformers wants an evaluation set where it is to evaluate; `evaluate` below never looks at it
        super().__init__(train_dataset=steps, eval_dataset=steps if evaluation else None, **options)
        self._steps, self._spec, self._evaluation = steps, spec, evaluation

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Steps in order. Not prepared by accelerate: each process encodes its own share already."""
        return DataLoader(
            self._steps,
            batch_size=1,
            shuffle=False,
            collate_fn=_only,
            num_workers=self.args.dataloader_num_workers,
            prefetch_factor=2 if self.args.dataloader_num_workers else None,
        )

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Gradients of one step: the weighted mean over its supervised tokens, however they are packed and spread."""
        model.train()
        _, world = rank_and_world()
        scale = world / max(self._steps.weight(self.state.global_step), 1e-12)
        total = torch.zeros((), device=self.args.device)
        state = self.accelerator.gradient_state
        for index, pack in enumerate(inputs):
            last = index == len(inputs) - 1
            state._set_sync_gradients(last)
            with self.accelerator.no_sync(model) if not last and world > 1 else nullcontext():
                batch = to_device(pack, self._spec, self.args.device, always_see=True)
                with self.compute_loss_context_manager():
                    loss = answer_loss(model(batch=batch), batch) * scale
                self.accelerator.backward(loss, **self._backward_options())
            total += loss.detach()
        if not math.isfinite(total.item()):
            ids = ", ".join(self._steps.ids(self.state.global_step)[:32])
            raise TrainingError(
                f"the loss became {total.item()} in step {self.state.global_step + 1}; its rows: {ids}. "
                "Lower train.lr or look at these rows; the checkpoints before it are whole"
            )
        return total

    def _backward_options(self) -> dict[str, Any]:
        return {"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: transformers' estimate knows nothing of packs."""
        return 0

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Weighted F1 of the validation rows, by label scoring."""
        assert self._evaluation is not None
        metrics = self._evaluation()
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self._is_whole():
            self._restore(resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if self._is_whole():
            self._restore(str(self.state.best_model_checkpoint))
        else:
            super()._load_best_model()

    def _is_whole(self) -> bool:
        """Whether a checkpoint is the model itself, neither adapters nor shards."""
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        return not sharded and not hasattr(self.model, "peft_config")

    def _restore(self, checkpoint: str) -> None:
        """Load the weights of a checkpoint, all of them.

        transformers' own way matches names loosely, and those of a saved Qwen2-VL differ from those in memory: it would
        go on from the untrained weights without a word.
        """
        model: Any = self.model
        saved = type(model).from_pretrained(checkpoint, dtype=model.dtype)
        model.load_state_dict(saved.state_dict(), strict=True)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint below a folder: one whose ``trainer_state.json``, written last, can be read."""
    whole = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json") if _is_json(path)]
    return max(whole, key=lambda path: int(path.name.partition("-")[2]), default=None)


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True


def _only(items: list[list[Pack]]) -> list[Pack]:
    return items[0]
