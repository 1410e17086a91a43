"""Our settings in transformers' terms."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tuyi.cores import reading_workers
from tuyi.errors import ConfigError
from tuyi.train.process import join, launched, rank_and_world
from tuyi.train.settings import Freeze, TrainSettings
from tuyi.train.zero import zero_settings

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
    """transformers' ``TrainingArguments`` for a run of ``steps`` optimizer steps that writes into ``folder``.

    Raises:
        ConfigError: The processes, or DeepSpeed's settings, do not fit the run.
    """
    from transformers import TrainingArguments

    if settings.deepspeed is None:
        join()
    zero = zero_settings(settings) if settings.deepspeed is not None else None
    if settings.fsdp and not launched():
        raise ConfigError(
            "train.fsdp needs torchrun, for one process too: "
            "torchrun --nproc-per-node=1 -m tuyi train …, or leave train.fsdp out"
        )
    assert settings.lr is not None, "settings are resolved first"
    save_steps = min(settings.save_steps or -(-steps // 4), steps)
    eval_steps = min(settings.eval_steps or save_steps, steps)
    if validated and settings.keep_best:
        save_steps = eval_steps  # a best checkpoint can only be kept where one is written
    arguments = TrainingArguments(
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
        deepspeed=zero,
        ddp_find_unused_parameters=False,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
    )
    _count_as_torch(arguments)
    return arguments


def _count_as_torch(arguments: Any) -> None:
    """Say how many processes there are: accelerate takes DeepSpeed on CPUs for a single one."""
    state = arguments.distributed_state
    state.process_index, state.num_processes = rank_and_world()
    state.local_process_index = int(os.environ.get("LOCAL_RANK", "0"))
    if arguments.deepspeed is not None:
        arguments.hf_deepspeed_config.config["train_batch_size"] = state.num_processes


def _workers() -> int:
    """The cores of this machine, shared by the GPUs."""
    import torch

    return reading_workers(max(1, torch.cuda.device_count()))
