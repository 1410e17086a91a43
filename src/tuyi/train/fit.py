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
    from transformers import PrinterCallback, set_seed

    from tuyi.train.progress import Teller, plot_loss, read_log
    from tuyi.train.steps import Steps
    from tuyi.train.trainable import add_lora, count, freeze_parts
    from tuyi.train.trainer import PackTrainer, last_checkpoint

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
    assert settings.freeze is not None
    freeze_parts(model.hf, settings.freeze)
    set_seed(settings.seed)
    learner = add_lora(model.hf, settings.lora, settings.freeze) if lora else model.hf
    if settings.gradient_checkpointing:
        model.hf.gradient_checkpointing_enable({"use_reentrant": False})
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
        evaluation=_evaluation(model, given) if given.valid is not None else None,
        model=learner,
        args=arguments,
        processing_class=given.frontend.processor,
        callbacks=_callbacks(teller, settings, given, writes=rank == 0),
    )
    trainer.remove_callback(PrinterCallback)  # ours tells the same
    checkpoint = last_checkpoint(checkpoints) if given.resume else None
    if given.resume:
        console.print(
            f"resuming from {checkpoint}" if checkpoint else "no whole checkpoint yet: starting from the first step"
        )
    begin = int(checkpoint.name.partition("-")[2]) if checkpoint else 0
    started = time.perf_counter()
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        teller.close()
    seconds = time.perf_counter() - started
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


def _evaluation(model: Model, given: Fitting) -> Callable[[], dict[str, float]]:
    """Scores of the validation rows with the weights as they are.

    Every process scores every row: where weights are sharded, all have to run the same passes anyway.
    """
    from sklearn.metrics import accuracy_score, f1_score

    from tuyi.predict.local import LocalEngine

    valid = given.valid
    assert valid is not None
    tasks = given.encoder.tasks
    gold: dict[str, tuple[str, str]] = {}
    for row in valid.rows:
        task = tasks.of(row)
        assert task.labels is not None
        assert row.label is not None
        gold[row.id] = (task.name, task.labels.canonical(row.label))
    engine = LocalEngine(model, given.encoder, pack_tokens=given.settings.pack_tokens, workers=2)

    def evaluate() -> dict[str, float]:
        model.hf.eval()
        found = {one.id: one.label for many in engine.predict(zip(valid.rows, valid.tokens)) for one in many}
        scores: dict[str, float] = {}
        for name in sorted({task for task, _ in gold.values()}):
            ids = [row for row, (task, _) in gold.items() if task == name]
            true, guess = [gold[row][1] for row in ids], [found[row] for row in ids]
            scores[f"eval_{name}_weighted_f1"] = float(f1_score(true, guess, average="weighted", zero_division=0))
            scores[f"eval_{name}_accuracy"] = float(accuracy_score(true, guess))
        f1s = [score for key, score in scores.items() if key.endswith("_weighted_f1")]
        return {"eval_weighted_f1": sum(f1s) / len(f1s), **scores}

    return evaluate


def _best(entries: list[dict[str, Any]], settings: TrainSettings) -> dict[str, float]:
    """The scores of the weights that were kept."""
    scored = [entry for entry in entries if "eval_weighted_f1" in entry]
    if not scored:
        return {}
    chosen = max(scored, key=lambda entry: entry["eval_weighted_f1"]) if settings.keep_best else scored[-1]
    return {key.removeprefix("eval_"): value for key, value in chosen.items() if key.startswith("eval_")}
