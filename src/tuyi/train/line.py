"""The way from files to the model while it is trained: steps, feed, picture processes, kept features."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuyi.train.feed import Feed, Lesson
from tuyi.train.keeping import keeper
from tuyi.train.process import rank_and_world
from tuyi.train.steps import Steps
from tuyi.train.taught import Taught
from tuyi.vision.pool import PicturePool

if TYPE_CHECKING:
    from tuyi.train.fit import Fitting
    from tuyi.train.learner import Learner

__all__ = ["Line", "open_line"]

_ARENA = 2 << 30
_ON_CPU = 16384


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """An open way from files to the model.

    Args:
        steps: The run.
        feed: Makes its packs.
        pool: Processes that decode pictures; None on a CPU, where the model wants the same cores.
        pack_tokens: Most tokens of a pack.
        workers: Rows that are encoded at a time.
        told: Lines that say what was chosen.
        closing: What is closed with it.
    """

    steps: Steps
    feed: Feed
    pool: PicturePool | None
    pack_tokens: int
    workers: int
    told: tuple[str, ...]
    closing: ExitStack


@contextmanager
def open_line(given: Fitting, taught: Taught, learner: Learner, *, gpu: bool) -> Iterator[Line]:
    """Open the way for a run; closed on leaving, however the run ends."""
    settings = learner.settings
    assert settings.workers is not None, "settings are resolved first"
    rank, world = rank_and_world()
    device = learner.model.device
    pack_tokens = settings.pack_tokens or _ON_CPU
    steps = Steps(given.rows, taught.plan, taught.weights, rank=rank, world=world, pack_tokens=pack_tokens)
    with ExitStack() as closing:
        pool = None
        if gpu:
            pool = closing.enter_context(PicturePool(settings.workers, _ARENA, pin=device.type == "cuda"))
        features, told = keeper(given, learner, world=world)
        feed = Feed(
            steps, given.encoder, device, workers=settings.workers, pool=pool,
            lesson=Lesson(taught.shares, settings.augment, settings.seed), features=features,
            # sharded weights are gathered by all processes or by none; learning ones need a gradient everywhere
            always_see=learner.tower_learns or settings.deepspeed is not None,
        )  # fmt: skip
        closing.callback(feed.close)
        yield Line(steps, feed, pool, pack_tokens, settings.workers, tuple(told), closing)
