"""How many packs pass a model at a time: one on a GPU, on a CPU one for each core where the model is small."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from queue import SimpleQueue

from tuyi.model.kept import Kept
from tuyi.model.load import Model
from tuyi.model.side_by_side import core_threads, twin
from tuyi.predict.clock import Clock
from tuyi.predict.feed import Ready
from tuyi.predict.scoring import Arriving, score_tokens

__all__ = ["Lanes", "Passed"]

Passed = tuple[Arriving, Kept]
"""Scores of a pack, and the visual features that it made."""


class Lanes:
    """Threads in which packs pass a model, or the thread of the caller where one pack passes at a time.

    Args:
        model: The model.
        clock: Of that model.
        count: How many packs pass at a time; above one each lane has a thread, an equal share of the cores, and a
            model of its own that shares its weights with all others.
    """

    def __init__(self, model: Model, clock: Clock, count: int) -> None:
        self.count = count
        self.clocks: list[Clock] = []
        self._own = (model, clock)
        self._pool: ThreadPoolExecutor | None = None
        self._free: SimpleQueue[tuple[Model, Clock]] = SimpleQueue()
        if count == 1:
            return
        for other in (replace(model, hf=twin(model.hf)) for _ in range(count)):
            self.clocks.append(Clock(other.hf))
            self._free.put((other, self.clocks[-1]))
        self._pool = core_threads(count)

    @property
    def idle(self) -> float:
        """The share of the device that has nothing to do while no pack is there to pass."""
        return self._free.qsize() / self.count if self._pool is not None else 1.0

    def start(self) -> None:
        """Forget how long what was before took."""
        for clock in self.clocks:
            clock.start()

    def score(self, ready: Ready, known: Kept, *, alone: bool) -> Future[Passed]:
        """Let a pack of rows with plain labels pass.

        Args:
            ready: The pack.
            known: Features that it counts on.
            alone: Whether no other pack follows, so that all cores are for this one.
        """
        if self._pool is not None and not alone:
            return self._pool.submit(self._in_lane, ready, known)
        passed: Future[Passed] = Future()
        passed.set_result(_pass(*self._own, ready, known))
        return passed

    def close(self) -> None:
        """Wait for packs on their way, and end the threads; safe to call twice."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        for clock in self.clocks:
            clock.stop()

    def _in_lane(self, ready: Ready, known: Kept) -> Passed:
        own = self._free.get()
        try:
            return _pass(*own, ready, known)
        finally:
            self._free.put(own)


def _pass(model: Model, clock: Clock, ready: Ready, known: Kept) -> Passed:
    held = Kept(known)
    scores = score_tokens(model, ready.batch, ready.pack, held)
    clock.scored()
    return Arriving.of(scores), Kept({key: levels for key, levels in held.items() if key not in known})
