"""A model loaded onto one device and made ready: kernels chosen, precision tried, blocks compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tuyi.encode.encoder import Encoder
from tuyi.errors import ModelError, TuyiError
from tuyi.model.load import Frontend, Model, load_frontend
from tuyi.predict.engine import SizedRow
from tuyi.predict.local import WINDOW, LocalEngine
from tuyi.predict.members import MembersEngine
from tuyi.predict.prediction import Prediction
from tuyi.predict.settings import PredictSettings
from tuyi.task.catalog import TaskSet
from tuyi.task.task import Task

if TYPE_CHECKING:
    from tuyi.vision.pool import PicturePool

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
        skip: Called with what is wrong with a row that turns out to be damaged, or that an engine outside this process
            does not answer; such a row stops the run where not given.
    """

    model: str
    tasks: TaskSet
    settings: PredictSettings
    rows: int
    window: int = WINDOW
    skip: Callable[[TuyiError], None] | None = None


@dataclass(frozen=True, eq=False, slots=True)
class _Part:
    """A model to open, and the rows that fp8 is tried on."""

    job: Job
    frontend: Frontend
    trial: Sequence[SizedRow]


def open_local(
    job: Job,
    frontend: Frontend | None = None,
    *,
    trial: Sequence[SizedRow] = (),
    tell: Callable[[str], None] = lambda line: None,
) -> LocalEngine | MembersEngine:
    """Load a model onto one device of this process, ready to predict; where each task has its own, all that are asked.

    Args:
        job: What for; its settings name one device at most.
        frontend: Of the same model; loaded where not given.
        trial: Rows to try fp8 on.
        tell: Called with lines that say what was chosen.

    Raises:
        ModelError: The model cannot be loaded, or precision fp8 changes too many labels.
    """
    frontend = frontend or load_frontend(job.model, [text for one in job.tasks for text in one.wording])
    members = frontend.info.members if frontend.info is not None else {}
    if not members:
        (engine,) = _open([_Part(job, frontend, trial)], tell)
        return engine
    engines = _open([_member(job, members[task.name], task, trial) for task in job.tasks], tell)
    encoder = Encoder(frontend.tokenizer, frontend.spec, job.tasks)
    return MembersEngine({task.name: engine for task, engine in zip(job.tasks, engines)}, encoder, job.window)


def _member(job: Job, name: str, task: Task, trial: Sequence[SizedRow]) -> _Part:
    """The model of one task of a job."""
    own = replace(
        job,
        model=str(Path(job.model) / name),
        tasks=TaskSet(name=task.name, tasks=(task,)),
        rows=job.rows // len(job.tasks.tasks),
    )
    return _Part(own, load_frontend(own.model), [row for row in trial if job.tasks.of(row[0]).name == task.name])


def _open(parts: Sequence[_Part], tell: Callable[[str], None]) -> list[LocalEngine]:
    """Engines of models that lie on one device together and run in turn: what room the device has left is for all."""
    from tuyi.model.fast import compile_blocks
    from tuyi.predict.warm import warm_up
    from tuyi.vision.pool import PicturePool

    models = [_load(part, tell) for part in parts]
    settings = parts[0].job.settings
    engines: list[LocalEngine] = []
    with ExitStack() as unless_ready:
        pool = None  # on a CPU the model wants the same cores, and threads share them as well
        if models[0].device.type == "cuda":
            pool = unless_ready.enter_context(PicturePool(settings.workers, _ARENA, pin=True, draft=settings.draft))
        unless_ready.callback(_close, engines)
        engines += [_engine(part.job, model, pool, len(parts)) for part, model in zip(parts, models)]
        for part, model, engine in zip(parts, models, engines):
            if settings.precision == "fp8":
                _try_fp8(part.job, engine, part.trial, tell)
            if _is_compiled(part.job, model):
                compile_blocks(model.hf)
                tell(f"compiled in {warm_up(model):.0f} s")
        unless_ready.pop_all()
    return engines


def _close(engines: Sequence[LocalEngine]) -> None:
    for engine in engines:
        engine.close()


def _load(part: _Part, tell: Callable[[str], None]) -> Model:
    from tuyi.model.fast import load_tuned

    settings = part.job.settings
    kind = "bfloat16" if settings.precision == "fp8" else settings.precision
    return load_tuned(part.frontend, settings.device, kind, tell)


def _engine(job: Job, model: Model, pool: PicturePool | None, models: int) -> LocalEngine:
    """The engine of one of several models, all of which are on the device by now."""
    from tuyi.predict.room import cache_tokens, cpu_lanes, kept_features, pack_tokens

    settings, frontend = job.settings, model.frontend
    writes = any(task.answer.has_free for task in job.tasks)
    side_by_side = model.device.type == "cpu" and not writes and not _is_compiled(job, model)
    lanes = cpu_lanes(model.hf.config, torch.get_num_threads()) if side_by_side else 1
    most = settings.pack_tokens or pack_tokens(model.hf, model.device, writes=writes, lanes=lanes)
    return LocalEngine(
        model,
        Encoder(frontend.tokenizer, frontend.spec, job.tasks),
        pack_tokens=most,
        cache_tokens=cache_tokens(model.hf, model.device, most) // models if writes else None,
        workers=settings.workers,
        info=frontend.info,
        pool=pool,
        features=kept_features(model.hf.config, model.device) // models,
        window=job.window,
        lanes=lanes,
        on_bad_row=job.skip,
    )


def _is_compiled(job: Job, model: Model) -> bool:
    if job.settings.compile is not None:
        return job.settings.compile
    return model.device.type == "cuda" and (job.rows >= WORTH_COMPILING or job.settings.precision == "fp8")


def _try_fp8(job: Job, engine: LocalEngine, trial: Sequence[SizedRow], tell: Callable[[str], None]) -> None:
    """Round the weights of an engine's language model to fp8, after a look at what that does to some rows.

    Raises:
        ModelError: The model cannot be rounded here, or too many labels change and it is not forced.
    """
    from tuyi.model.fp8 import use_fp8
    from tuyi.predict.compare import compare_predictions

    def predicted() -> list[Prediction]:
        return [one for many in engine.predict(trial) for one in many]

    before = predicted() if trial else []
    use_fp8(engine.model.hf)
    if not trial:
        return
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
