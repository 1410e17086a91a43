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
        self._pool: ThreadPoolExecutor | None = None
        self._free: SimpleQueue[tuple[Model, Clock]] = SimpleQueue()
        self.clocks: list[Clock] = []
        if count == 1:
            self._free.put((model, clock))
            return
        for other in (replace(model, hf=twin(model.hf)) for _ in range(count)):
            self.clocks.append(Clock(other.hf))
            self._free.put((other, self.clocks[-1]))
        self._pool = core_threads(count)

    def start(self) -> None:
        """Forget how long what was before took."""
        for clock in self.clocks:
            clock.start()

    def score(self, ready: Ready, known: Kept) -> Future[Passed]:
        """Let a pack of rows with plain labels pass.

        Args:
            ready: The pack.
            known: Features that it counts on.
        """
        if self._pool is not None:
            return self._pool.submit(self._pass, ready, known)
        passed: Future[Passed] = Future()
        passed.set_result(self._pass(ready, known))
        return passed

    def close(self) -> None:
        """Wait for packs on their way, and end the threads; safe to call twice."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        for clock in self.clocks:
            clock.stop()

    def _pass(self, ready: Ready, known: Kept) -> Passed:
        model, clock = self._free.get()
        try:
            held = Kept(known)
            scores = score_tokens(model, ready.batch, ready.pack, held)
            clock.scored()
        finally:
            self._free.put((model, clock))
        return Arriving.of(scores), Kept({key: levels for key, levels in held.items() if key not in known})
