"""The training loop: model, freezing, adapters, trainer, evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuyi.encode.encoder import Encoder
from tuyi.encode.survey import Survey
from tuyi.errors import ConfigError
from tuyi.model.load import Frontend, Model, load_model
from tuyi.model.tiny import NAMES
from tuyi.train.arguments import resolve, training_arguments
from tuyi.train.plan import Plan
from tuyi.train.process import rank_and_world
from tuyi.train.settings import TrainSettings

__all__ = ["Fitted", "Fitting", "fit"]


@dataclass(frozen=True, slots=True, eq=False)
class Fitting:
    """All that a training loop needs.

    Args:
        frontend, encoder: Of the model to train.
        rows: What to learn.
        valid: What to score along the way.
        settings: How.
        out: The model folder.
        resume: Whether to go on from the newest whole checkpoint.
        console: For progress; None to stay silent.
    """

    frontend: Frontend
    encoder: Encoder
    rows: Survey
    valid: Survey | None
    settings: TrainSettings
    out: Path
    resume: bool
    console: Any


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A trained model, not yet saved.

    Args:
        trainer: Holds it.
        base: Makes the untouched base model again; None where the weights themselves learned.
        steps, rows_done, seconds, loss, scores, settings: As in the summary.
    """

    trainer: Any
    base: Callable[[], Any] | None
    steps: int
    rows_done: int
    seconds: float
    loss: float
    scores: dict[str, float]
    settings: TrainSettings


def fit(given: Fitting) -> Fitted:
    """Train.

    Raises:
        ConfigError: Settings that do not go together.
        TrainingError: The loss stopped being a number.
    """
    import torch
    from rich.console import Console
    from transformers import PrinterCallback

    from tuyi.train.progress import Teller, plot_loss, read_log
    from tuyi.train.steps import Steps
    from tuyi.train.trainable import count
    from tuyi.train.trainer import PackTrainer, last_checkpoint
    from tuyi.train.validate import validation

    gpu = torch.cuda.is_available()
    settings = resolve(given.settings, builtin=given.frontend.name in NAMES, gpu=gpu)
    console = given.console or Console(quiet=True)
    plan = Plan(
        given.rows.tokens,
        epochs=settings.epochs,
        seed=settings.seed,
        batch_rows=settings.batch_rows,
        batch_tokens=settings.batch_tokens,
        max_steps=settings.max_steps,
    )
    checkpoints = given.out / "checkpoints"
    arguments = training_arguments(settings, checkpoints, plan.steps, validated=given.valid is not None, gpu=gpu)
    rank, world = rank_and_world()
    lora = settings.method == "lora"
    dtype = "bfloat16" if lora and settings.precision == "bf16" else "float32"

    def base() -> Model:
        return load_model(given.frontend, device=str(arguments.device), dtype=dtype, seed=settings.seed)

    model = base()
    learner = _learner(model, settings)
    steps = Steps(
        given.rows,
        given.encoder,
        plan,
        rank=rank,
        world=world,
        pack_tokens=settings.pack_tokens,
        keep=arguments.dataloader_num_workers == 0,
    )
    learning, everything = count(learner)
    console.print(_headline(given, settings, plan, learning, everything, str(arguments.device)), highlight=False)
    log = given.out / "loss.jsonl"
    teller = Teller(log, steps, console)
    trainer = PackTrainer(
        steps=steps,
        spec=model.spec,
        evaluation=validation(model, given.encoder, given.valid, settings.pack_tokens) if given.valid else None,
        model=learner,
        args=arguments,
        processing_class=given.frontend.processor,
        callbacks=_callbacks(teller, settings, given, writes=rank == 0),
    )
    trainer.remove_callback(PrinterCallback)  # ours tells the same
    checkpoint = last_checkpoint(checkpoints) if given.resume else None
    if given.resume:
        console.print(f"resuming from {checkpoint}" if checkpoint else "no whole checkpoint yet: starting anew")
    started = time.perf_counter()
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        teller.close()
    seconds = time.perf_counter() - started
    begin = int(checkpoint.name.partition("-")[2]) if checkpoint else 0
    entries = read_log(log)
    losses = [entry["loss"] for entry in entries if "loss" in entry]
    if rank == 0:
        plot_loss(log, given.out / "loss.png")
    tail = losses[-max(1, len(losses) // 10) :]
    return Fitted(
        trainer=trainer,
        base=(lambda: base().hf) if lora else None,
        steps=plan.steps,
        rows_done=sum(steps.rows_in(step) for step in range(begin, trainer.state.global_step)),
        seconds=seconds,
        loss=sum(tail) / len(tail) if tail else float("nan"),
        scores=_best(entries, settings),
        settings=settings,
    )


def _learner(model: Model, settings: TrainSettings) -> Any:
    """The model with its frozen parts, or its adapters, as the trainer gets it."""
    from transformers import set_seed

    from tuyi.train.trainable import add_lora, freeze_parts

    assert settings.freeze is not None, "settings are resolved first"
    freeze_parts(model.hf, settings.freeze)
    if settings.gradient_checkpointing:
        model.hf.gradient_checkpointing_enable({"use_reentrant": False})
    set_seed(settings.seed)
    return add_lora(model.hf, settings.lora, settings.freeze) if settings.method == "lora" else model.hf


def _headline(given: Fitting, settings: TrainSettings, plan: Plan, learning: int, everything: int, device: str) -> str:
    assert settings.freeze is not None
    frozen = [name for name, value in settings.freeze.model_dump().items() if value]
    return (
        f"training {given.frontend.name} on {device}, {settings.precision}, {settings.method}: "
        f"{learning / 1e6:.2f} M of {everything / 1e6:.2f} M weights learn"
        f"{' (frozen: ' + ', '.join(frozen) + ')' if frozen else ''}\n"
        f"{len(given.rows)} rows, mean {sum(given.rows.tokens) / len(given.rows):.0f} tokens, longest "
        f"{max(given.rows.tokens)}; {plan.steps} steps, peak learning rate {settings.lr:g}"
    )


def _callbacks(teller: Any, settings: TrainSettings, given: Fitting, *, writes: bool) -> list[Any]:
    from transformers import EarlyStoppingCallback
    from transformers.integrations.integration_utils import TensorBoardCallback

    callbacks: list[Any] = [teller] if writes else []
    if settings.tensorboard and writes:
        from torch.utils.tensorboard import SummaryWriter

        callbacks.append(TensorBoardCallback(SummaryWriter(str(given.out / "logs"))))
    if settings.early_stop is not None:
        if given.valid is None or not settings.keep_best:
            raise ConfigError("early_stop needs validation rows (--valid) and keep_best")
        callbacks.append(EarlyStoppingCallback(settings.early_stop))
    return callbacks


def _best(entries: list[dict[str, Any]], settings: TrainSettings) -> dict[str, float]:
    """The scores of the weights that were kept."""
    scored = [entry for entry in entries if "eval_weighted_f1" in entry]
    if not scored:
        return {}
    chosen = max(scored, key=lambda entry: entry["eval_weighted_f1"]) if settings.keep_best else scored[-1]
    return {key.removeprefix("eval_"): value for key, value in chosen.items() if key.startswith("eval_")}
