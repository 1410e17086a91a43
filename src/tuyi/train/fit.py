"""The training loop: model, freezing, adapters, trainer, evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuyi.encode.encoder import Encoder
from tuyi.encode.survey import Survey
from tuyi.errors import ConfigError
from tuyi.model.load import Frontend
from tuyi.model.tiny import NAMES
from tuyi.train.arguments import resolve, training_arguments
from tuyi.train.disk import check_disk
from tuyi.train.plan import Plan
from tuyi.train.process import check_alike, check_shares, rank_and_world
from tuyi.train.settings import TrainSettings
from tuyi.train.taught import teach

if TYPE_CHECKING:
    from tuyi.train.learner import Learner

__all__ = ["Fitted", "Fitting", "fit"]


@dataclass(frozen=True, slots=True, eq=False)
class Fitting:
    """All that a training loop needs.

    Args:
        frontend, encoder: Of the model to train.
        lessons: An encoder whose tasks are those that the rows to learn ask, questions for reasons among them.
        rows: What to learn.
        valid: What to score along the way.
        settings: How.
        out: The model folder.
        resume: Whether to go on from the newest whole checkpoint.
        console: For progress; None to stay silent.
    """

    frontend: Frontend
    encoder: Encoder
    lessons: Encoder
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
        OutputError: The disk has no room for the run's checkpoints.
        TrainingError: The loss stopped being a number, or rose far above its beginning.
    """
    import torch
    from rich.console import Console

    from tuyi.train.learner import make_learner
    from tuyi.train.line import open_line
    from tuyi.train.progress import Teller, last_loss, plot_loss, read_log
    from tuyi.train.trainer import last_checkpoint
    from tuyi.train.validate import validation
    from tuyi.train.zero import let_load

    gpu = torch.cuda.is_available()
    settings = resolve(given.settings, builtin=given.frontend.name in NAMES, gpu=gpu)
    console = given.console or Console(quiet=True)
    taught = teach(given.rows, given.lessons, settings)
    checkpoints = given.out / "checkpoints"
    arguments = training_arguments(settings, checkpoints, taught.plan.steps, validated=given.valid is not None, gpu=gpu)
    check_shares(given.rows, taught.plan, settings)
    learner = make_learner(given.frontend, settings, str(arguments.device), rows=len(given.rows))
    console.print(_headline(given, learner, taught.plan), highlight=False)
    if rank_and_world()[0] == 0:
        check_disk(
            given.out,
            learner.settings,
            learning=learner.learning,
            everything=learner.everything,
            saves=-(-taught.plan.steps // int(arguments.save_steps)),
            keeps_best=bool(arguments.load_best_model_at_end),
        )
    with open_line(given, taught, learner, gpu=gpu) as line:
        for told in (*taught.told, *learner.told, *line.told):
            console.print(told, highlight=False, markup=False)
        log = given.out / "loss.jsonl"
        teller = Teller(log, line.steps, console)
        trainer = _trainer_of(settings)(
            steps=line.steps,
            feed=line.feed,
            settings=line.settings,
            evaluation=validation(learner.model, given.encoder, given.valid, line) if given.valid else None,
            model=learner.hf,
            args=arguments,
            processing_class=given.frontend.processor,
            callbacks=_callbacks(teller, settings, given, writes=rank_and_world()[0] == 0),
        )
        checkpoint = last_checkpoint(checkpoints) if given.resume else None
        if given.resume:
            check_alike({"the checkpoint to resume from": str(checkpoint)}, "let all machines share --out")
            console.print(f"resuming from {checkpoint}" if checkpoint else "no whole checkpoint yet: starting anew")
        if checkpoint and settings.deepspeed is not None:
            let_load(checkpoint, trainer.accelerator.state.deepspeed_plugin.deepspeed_config)
        seconds = _run(trainer, teller, checkpoint)
    begin = int(checkpoint.name.partition("-")[2]) if checkpoint else 0
    entries = read_log(log)
    if rank_and_world()[0] == 0:
        plot_loss(log, given.out / "loss.png")
    return Fitted(
        trainer=trainer,
        base=learner.base,
        steps=taught.plan.steps,
        rows_done=sum(line.steps.rows_in(step) for step in range(begin, trainer.state.global_step)),
        seconds=seconds,
        loss=last_loss(entries),
        scores=_best(entries, settings),
        settings=line.settings,
    )


def _trainer_of(settings: TrainSettings) -> Any:
    """The trainer's class."""
    if settings.fsdp:
        from tuyi.train.sharded import ShardedTrainer

        return ShardedTrainer
    from tuyi.train.trainer import PackTrainer

    return PackTrainer


def _run(trainer: Any, teller: Any, checkpoint: Path | None) -> float:
    """Seconds that training took."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)  # ours tells the same
    started = time.perf_counter()
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        trainer.close()
        teller.close()
    return time.perf_counter() - started


def _headline(given: Fitting, learner: Learner, plan: Plan) -> str:
    settings = learner.settings
    assert settings.freeze is not None
    frozen = [name for name, value in settings.freeze.model_dump().items() if value]
    return (
        f"training {given.frontend.name} on {learner.model.device}, {settings.precision}, {settings.method}: "
        f"{learner.learning / 1e6:.2f} M of {learner.everything / 1e6:.2f} M weights learn"
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
