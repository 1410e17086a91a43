"""A model loaded onto one device and made ready: kernels chosen, precision tried, blocks compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from tuyi.encode.encoder import Encoder
from tuyi.errors import DataError, ModelError
from tuyi.model.load import Frontend, Model, load_frontend, load_model
from tuyi.predict.engine import SizedRow
from tuyi.predict.local import WINDOW, LocalEngine
from tuyi.predict.prediction import Prediction
from tuyi.predict.settings import PredictSettings
from tuyi.task.catalog import TaskSet

__all__ = ["WORTH_COMPILING", "Job", "open_local"]

WORTH_COMPILING = 1000
"""Rows from which on compiling (about 15 s on an H200 for a 7B model) is earned back."""
_AGREEMENT = 0.995
_ARENA = 2 << 30
"""Shared memory for pictures on their way, at most: about five packs."""


@dataclass(frozen=True, slots=True)
class Job:
    """What an engine is opened for.

    Args:
        model: A model folder, hub id or built-in name.
        tasks: The tasks to ask.
        settings: How.
        rows: How many rows there are; decides whether compiling pays.
        window: Rows sorted by length together.
        skip: Called with what is wrong with a row that turns out to be damaged; such a row stops the run where not
            given.
    """

    model: str
    tasks: TaskSet
    settings: PredictSettings
    rows: int
    window: int = WINDOW
    skip: Callable[[DataError], None] | None = None


def open_local(
    job: Job,
    frontend: Frontend | None = None,
    *,
    trial: Sequence[SizedRow] = (),
    tell: Callable[[str], None] = lambda line: None,
) -> LocalEngine:
    """Load a model onto one device of this process, ready to predict.

    Args:
        job: What for; its settings name one device at most.
        frontend: Of the same model; loaded where not given.
        trial: Rows to try fp8 on.
        tell: Called with lines that say what was chosen.

    Raises:
        ModelError: The model cannot be loaded, or precision fp8 changes too many labels.
    """
    from tuyi.model.fast import compile_blocks, tune

    settings = job.settings
    frontend = frontend or load_frontend(job.model, [text for one in job.tasks for text in one.wording])
    encoder = Encoder(frontend.tokenizer, frontend.spec, job.tasks)
    kind = "bfloat16" if settings.precision == "fp8" else settings.precision
    model = load_model(frontend, device=settings.device, dtype=kind)
    for line in tune(model.hf):
        tell(line)
    engine = _engine(job, model, encoder)
    if settings.precision == "fp8":
        _try_fp8(job, engine, trial, tell)
    if _is_compiled(job, model):
        compile_blocks(model.hf)
        from tuyi.predict.warm import warm_up

        tell(f"compiled in {warm_up(model):.0f} s")
    return engine


def _engine(job: Job, model: Model, encoder: Encoder) -> LocalEngine:
    from tuyi.predict.room import kept_features, pack_tokens
    from tuyi.vision.pool import PicturePool

    settings, on_gpu = job.settings, model.device.type == "cuda"
    return LocalEngine(
        model,
        encoder,
        pack_tokens=settings.pack_tokens or pack_tokens(model.hf, model.device),
        workers=settings.workers,
        info=model.frontend.info,
        # on a CPU the model wants the same cores, and threads share them as well
        pool=PicturePool(settings.workers, _ARENA, pin=True, draft=settings.draft) if on_gpu else None,
        features=kept_features(model.hf.config, model.device),
        window=job.window,
        on_bad_row=job.skip,
    )


def _is_compiled(job: Job, model: Model) -> bool:
    if job.settings.compile is not None:
        return job.settings.compile
    return model.device.type == "cuda" and (job.rows >= WORTH_COMPILING or job.settings.precision == "fp8")


def _try_fp8(job: Job, engine: LocalEngine, trial: Sequence[SizedRow], tell: Callable[[str], None]) -> None:
    """Round the weights of an engine's language model to fp8, after a look at what that does to some rows.

    Raises:
        ModelError: The model cannot be rounded here, or too many labels change and it is not forced; the engine is
            closed then.
    """
    from tuyi.model.fp8 import use_fp8
    from tuyi.predict.compare import compare_predictions

    def predicted() -> list[Prediction]:
        return [one for many in engine.predict(trial) for one in many]

    with ExitStack() as unless_kept:
        unless_kept.callback(engine.close)
        before = predicted() if trial else []
        use_fp8(engine.model.hf)
        if trial:
            found = compare_predictions(before, predicted())
            tell(
                f"fp8 against bfloat16 on {found.rows} rows: {found.share:.2%} of the labels equal, "
                f"probabilities differ by at most {found.largest_difference or 0:.3f}"
            )
            if found.share < _AGREEMENT and not job.settings.force_fp8:
                raise ModelError(
                    f"precision fp8 keeps {found.share:.2%} of the labels of {found.rows} rows, expected "
                    f"{_AGREEMENT:.1%} or more; use bfloat16, or --set predict.force_fp8=true"
                )
        unless_kept.pop_all()
