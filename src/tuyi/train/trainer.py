"""transformers' Trainer with our steps, our loss and our evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer

from tuyi.errors import TrainingError
from tuyi.model.write import parted, weight_errors
from tuyi.train.adamw import AdamW16
from tuyi.train.feed import Feed, Ready
from tuyi.train.lanes import Lanes
from tuyi.train.loss import answer_loss
from tuyi.train.process import rank_and_world
from tuyi.train.settings import TrainSettings
from tuyi.train.steps import Steps
from tuyi.train.together import Together
from tuyi.train.trainable import restore_adapters
from tuyi.train.watch import what_is_wrong
from tuyi.train.zero import mend_groups

__all__ = ["PackTrainer", "answer_loss", "last_checkpoint"]


class PackTrainer(Trainer):
    """One item of the data set is one optimizer step: the packs that this process computes for it.

    Args:
        steps: The run.
        feed: Makes the packs.
        settings: How to train, everything filled in.
        evaluation: Scores the validation rows; returns metrics named ``eval_…``.
        options: As for ``Trainer``; gradient accumulation stays 1, since a step brings its own passes.
    """

    def __init__(
        self, *, steps: Steps, feed: Feed, settings: TrainSettings,
        evaluation: Callable[[], dict[str, float]] | None, **options: Any,
    ) -> None:  # fmt: skip
        # transformers wants an evaluation set where it is to evaluate; `evaluate` below never looks at it
        super().__init__(train_dataset=steps, eval_dataset=steps if evaluation else None, **options)
        self._steps, self._feed, self._settings, self._evaluation = steps, feed, settings, evaluation
        self._own: AdamW16 | None = None
        self._lanes: Lanes | None = None

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Step numbers in order; what they stand for comes from the feed."""
        return DataLoader(self._steps, batch_size=1, shuffle=False, collate_fn=_only)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Our own for weights of 16 bits, else torch's."""
        whole: Any = self.model
        learning = [weight for weight in whole.parameters() if weight.requires_grad]
        if self._is_sharded() or any(weight.dtype != torch.bfloat16 for weight in learning):
            return super().create_optimizer(model)
        decayed = set(self.get_decay_parameter_names(whole))
        named = [(name, weight) for name, weight in whole.named_parameters() if weight.requires_grad]
        groups = [
            {"params": [w for name, w in named if name in decayed], "weight_decay": self.args.weight_decay},
            {"params": [w for name, w in named if name not in decayed], "weight_decay": 0.0},
        ]
        for weight in learning:
            weight.grad_dtype = torch.float32  # gradients of several passes are added up in it
        self.optimizer = self._own = AdamW16(
            [group for group in groups if group["params"]], lr=self.args.learning_rate,
            betas=(self.args.adam_beta1, self.args.adam_beta2), eps=self.args.adam_epsilon,
            exact=self._settings.precision == "bf16", seed=self.args.seed,
        )  # fmt: skip
        return self.optimizer

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """The norm of all gradients; with our own optimizer they are scaled down as it reads them."""
        if self._own is None:
            return super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        norm = nn.utils.get_total_norm([weight.grad for weight in model.parameters() if weight.grad is not None])
        self._own.scale = (self.args.max_grad_norm / (norm + 1e-6)).clamp(max=1.0).float()
        return norm

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        if self.is_deepspeed_enabled:
            wrapped: nn.Module = super()._wrap_model(model, training, dataloader)
            return wrapped
        model._is_accelerate_prepared = True  # type: ignore[assignment]  # or accelerate would put DDP around it
        alone = self._is_sharded() or rank_and_world()[1] == 1 or isinstance(model, Together)
        return model if alone else Together(model)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Gradients of one step: the weighted mean over its supervised tokens, however they are packed and spread."""
        model.train()
        step: int = inputs["step"]
        world = rank_and_world()[1] if self._is_sharded() else 1  # those engines take the mean over processes
        scale = world / max(self._steps.weight(step), 1e-12)
        total = torch.zeros((), device=self.args.device)
        if self._steps.lanes > 1:
            self._lanes = self._lanes or Lanes(model, self._steps.lanes, self._pass)
            total += self._lanes.run([ready for ready, _ in self._feed.packs(step)], scale)
        else:
            for ready, is_last in self._feed.packs(step):
                with self._summed(model, is_last):
                    total += self._pass(model, ready, scale)
        if isinstance(model, Together):
            model.finish()
        if rank_and_world()[1] > 1:  # all of them learn together of a loss that stops the run
            torch.distributed.all_reduce(total)
        total /= world
        self._watch(step, total.item())
        return total

    def _pass(self, model: nn.Module, ready: Ready, scale: float) -> Tensor:
        """The loss of a pack; its gradients are added to the model's."""
        with self.compute_loss_context_manager():
            log_probs = model(batch=ready.batch, kept=ready.kept, scored=True)
            loss = answer_loss(log_probs, ready.batch, ready.soft) * scale
            self.accelerator.backward(loss, **self._backward_options())
        return loss.detach()

    @contextmanager
    def _summed(self, model: nn.Module, is_last: bool) -> Iterator[None]:
        """A pass whose gradients are summed over processes if it is the step's last."""
        self.accelerator.gradient_state._set_sync_gradients(is_last)
        if isinstance(model, Together):
            model.is_last = is_last
        with self.accelerator.no_sync(model) if self._is_sharded() and not is_last else nullcontext():
            yield

    def _watch(self, step: int, loss: float) -> None:
        """Stop a run that goes wrong.

        Raises:
            TrainingError: The loss is no number, or a spike; with the rows of the step.
        """
        logged = [entry["loss"] for entry in self.state.log_history if "loss" in entry]
        wrong = what_is_wrong(loss, logged, self._settings.spike)
        if wrong is not None:
            ids = ", ".join(self._steps.ids(step)[:32])
            raise TrainingError(
                f"{wrong} in step {step + 1}; its rows: {ids}. "
                "Lower train.lr or look at these rows; the checkpoints before it are whole"
            )

    def close(self) -> None:
        """End the threads of passes that run side by side; safe to call twice."""
        if self._lanes is not None:
            self._lanes.close()

    def _is_sharded(self) -> bool:
        """Whether another engine holds weights, gradients or optimizer."""
        return bool(self.is_deepspeed_enabled or self.is_fsdp_enabled)

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

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the whole model; nothing into a checkpoint of spread weights, which has their parts."""
        assert output_dir is not None
        if _internal_call and self._is_sharded():
            Path(output_dir).mkdir(parents=True, exist_ok=True)
        else:
            self._save_whole(output_dir)

    def _save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        with weight_errors(Path(str(self.args.output_dir))):
            super()._save_checkpoint(*arguments, **options)

    def _save_whole(self, folder: str) -> None:
        super().save_model(folder)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if state_dict is None and self.args.should_save and not hasattr(self.model, "peft_config"):
            state_dict = parted(self.model)
        super()._save(output_dir, state_dict)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        optimizer: Any = self.optimizer
        schedule: Any = self.lr_scheduler
        if checkpoint is not None and not self.is_deepspeed_enabled:
            # by way of the CPU: a GPU need not hold the averages twice
            state = torch.load(Path(checkpoint) / "optimizer.pt", map_location="cpu", weights_only=True)
            optimizer.load_state_dict(state)
            schedule.load_state_dict(torch.load(Path(checkpoint) / "scheduler.pt", weights_only=True))
        elif checkpoint is not None:
            super()._load_optimizer_and_scheduler(checkpoint)
            mend_groups(optimizer.optimizer.optimizer, (self.args.weight_decay, 0.0))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self._is_sharded():
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self._restore(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self._is_sharded():
            super()._load_best_model()
        else:
            self._restore(str(self.state.best_model_checkpoint))

    def _restore(self, checkpoint: str) -> None:
        """Load the weights of a checkpoint, all of them.

        transformers' own way matches names loosely, and those of a saved Qwen2-VL differ from those in memory: it would
        go on from the untrained weights without a word.
        """
        model: Any = self.model
        if hasattr(model, "peft_config"):
            restore_adapters(model, Path(checkpoint))
            return
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


def _only(items: list[dict[str, int]]) -> dict[str, int]:
    return items[0]
