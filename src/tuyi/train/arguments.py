"""Our settings in transformers' terms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tuyi.train.settings import Freeze, TrainSettings

__all__ = ["resolve", "training_arguments"]


def resolve(settings: TrainSettings, *, builtin: bool, gpu: bool) -> TrainSettings:
    """Fill in what was left to us: settings with no value that depends on the model or the machine."""
    rate = 1e-5 if settings.method == "full" else 1e-4
    freeze = Freeze(vision=False, projector=False) if builtin else Freeze()
    return settings.model_copy(
        update={
            "lr": settings.lr or (1e-3 if builtin else rate),
            "freeze": settings.freeze or freeze,
            "precision": settings.precision or ("bf16" if gpu else "fp32"),
            "workers": settings.workers or (_workers() if gpu else 1),
        }
    )


def training_arguments(settings: TrainSettings, folder: Path, steps: int, *, validated: bool, gpu: bool) -> Any:
    """transformers' ``TrainingArguments`` for a run of ``steps`` optimizer steps that writes into ``folder``."""
    from transformers import TrainingArguments

    assert settings.lr is not None, "settings are resolved first"
    save_steps = min(settings.save_steps or -(-steps // 4), steps)
    eval_steps = min(settings.eval_steps or save_steps, steps)
    if validated and settings.keep_best:
        save_steps = eval_steps  # a best checkpoint can only be kept where one is written
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=1,
        max_steps=steps,
        learning_rate=settings.lr,
        lr_scheduler_type=settings.schedule if settings.schedule != "constant" else "constant_with_warmup",
        warmup_steps=round(settings.warmup * steps),
        optim="adamw_torch_fused",
        weight_decay=settings.weight_decay,
        adam_beta1=settings.betas[0],
        adam_beta2=settings.betas[1],
        max_grad_norm=settings.max_grad_norm,
        # DeepSpeed keeps 32-bit weights of its own; elsewhere the weights are of the type that is computed in
        bf16=settings.precision != "fp32" and settings.deepspeed is not None,
        use_cpu=not gpu and settings.deepspeed is None,  # DeepSpeed chooses its own device
        seed=settings.seed,
        logging_steps=settings.log_steps,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if validated else "no",
        eval_steps=eval_steps,
        save_strategy="steps",
        save_steps=save_steps,
        save_total_limit=settings.keep_checkpoints,
        load_best_model_at_end=validated and settings.keep_best,
        metric_for_best_model="weighted_f1" if validated else None,
        greater_is_better=True if validated else None,
        deepspeed=str(settings.deepspeed) if settings.deepspeed else None,
        ddp_find_unused_parameters=False,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
    )


def _workers() -> int:
    """The cores of this machine, shared by the GPUs."""
    import os

    import torch

    return max(2, min(16, (os.cpu_count() or 2) // max(1, torch.cuda.device_count()) - 1))
