"""The way from files to the model while it is trained: steps, feed, picture processes, kept features."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tuyi.train.feed import Feed, Lesson
from tuyi.train.keeping import keeper
from tuyi.train.lanes import lanes_of
from tuyi.train.memory import Sharding, estimate, free_bytes
from tuyi.train.process import least, rank_and_world
from tuyi.train.room import Choice, check_host, choose, sizes_of
from tuyi.train.settings import TrainSettings
from tuyi.train.steps import Steps
from tuyi.train.taught import Taught
from tuyi.vision.pool import PicturePool

if TYPE_CHECKING:
    from tuyi.train.fit import Fitting
    from tuyi.train.learner import Learner

__all__ = ["Line", "open_line"]

_ARENA = 2 << 30
"""Shared memory for pictures on their way: some packs."""


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """An open way from files to the model.

    Args:
        steps: The run.
        feed: Makes its packs.
        pool: Processes that decode pictures; None on a CPU, where the model wants the same cores.
        settings: How to train, with what the memory decided.
        told: Lines that say what was chosen.
        closing: What is closed with it.
    """

    steps: Steps
    feed: Feed
    pool: PicturePool | None
    settings: TrainSettings
    told: tuple[str, ...]
    closing: ExitStack


@contextmanager
def open_line(given: Fitting, taught: Taught, learner: Learner, *, gpu: bool) -> Iterator[Line]:
    """Open the way for a run; closed on leaving, however the run ends.

    Raises:
        ConfigError: The memory does not hold the run.
    """
    settings, device = learner.settings, learner.model.device
    assert settings.workers is not None, "settings are resolved first"
    rank, world = rank_and_world()
    with ExitStack() as closing:
        kept = keeper(given, learner, world=world)
        choice = _choose(given, taught, learner, world, kept.device_bytes)
        if choice.checkpointing:
            learner.model.hf.gradient_checkpointing_enable({"use_reentrant": False})
        steps = Steps(
            given.rows, taught.plan, taught.weights, rank=rank, world=world, pack_tokens=choice.pack_tokens,
            lanes=_lanes(learner, world, choice.pack_tokens // int(max(taught.plan.tokens))),
        )  # fmt: skip
        pool = None
        if gpu:
            pool = closing.enter_context(PicturePool(settings.workers, _ARENA, pin=device.type == "cuda"))
        feed = Feed(
            steps, given.lessons, device, workers=settings.workers, pool=pool,
            lesson=Lesson(taught.shares, settings.soft, settings.augment, settings.seed), features=kept.features,
            # sharded weights are gathered by all processes or by none; learning ones need a gradient everywhere
            always_see=learner.tower_learns or settings.deepspeed is not None,
        )  # fmt: skip
        closing.callback(feed.close)
        found = {"pack_tokens": choice.pack_tokens, "gradient_checkpointing": choice.checkpointing}
        told = tuple(line for line in (choice.why, kept.told) if line)
        yield Line(steps, feed, pool, settings.model_copy(update=found), told, closing)


def _lanes(learner: Learner, world: int, most: int) -> int:
    """How many passes run side by side: several on a CPU, of a model as it is; ``most`` of the longest rows fit."""
    settings = learner.settings
    plain = settings.method == "full" and settings.precision == "fp32" and not settings.compile
    if learner.model.device.type != "cpu" or world > 1 or not plain or settings.deepspeed is not None:
        return 1
    return lanes_of(learner.learning, max(1, min(most, torch.get_num_threads())))


def _choose(given: Fitting, taught: Taught, learner: Learner, world: int, taken: int) -> Choice:
    """The size of packs and whether to compute twice, by the memory that is free beside what is taken already."""
    settings, device = learner.settings, learner.model.device
    zero = None
    if settings.deepspeed is not None:
        from tuyi.train.zero import zero_settings

        zero = zero_settings(settings)
    need = estimate(
        learner.model.hf.config,
        settings,
        learning=learner.learning,
        everything=learner.everything,
        sharding=Sharding.of(settings, world, zero),
        branches=taught.shares is not None,
    )
    if need.host:
        check_host(need, free_bytes(torch.device("cpu")), int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return choose(
        need,
        least(free_bytes(device) - taken),  # packs of different sizes would part the processes
        sizes_of(given.rows, taught.plan.tokens, settings, world=world),
        pack_tokens=settings.pack_tokens,
        checkpointing=settings.gradient_checkpointing,
        gpu=device.type == "cuda",
    )
