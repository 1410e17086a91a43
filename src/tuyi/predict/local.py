"""The local engine: rows to predictions on one device of this machine."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from tuyi.encode.encoded import Encoded
from tuyi.encode.encoder import Encoder
from tuyi.errors import DataError, ModelError, first_line
from tuyi.model.folder import FolderInfo
from tuyi.model.kept import Kept
from tuyi.model.load import Model
from tuyi.predict.answering import Answering
from tuyi.predict.calibrated import calibrated
from tuyi.predict.clock import Clock
from tuyi.predict.engine import SizedRow
from tuyi.predict.feed import Feed, Ready
from tuyi.predict.lanes import Lanes, Passed
from tuyi.predict.prediction import Prediction
from tuyi.predict.scoring import Arriving, gather_labels
from tuyi.vision.pool import PicturePool

__all__ = ["LocalEngine"]

WINDOW = 1024
"""Rows sorted by length together; also the most that wait for each other."""


@dataclass(eq=False, slots=True)
class _UnderWay:
    """A pack that has been handed to the device; ``scores`` are known once it went through the model."""

    ready: Ready
    passed: Future[Passed]
    scores: Arriving | None = None


class LocalEngine:
    """Answers rows in packs sorted by length: plain labels are scored, free text is written.

    Args:
        model: The model.
        encoder: Of the same model, with its tasks.
        pack_tokens: Most tokens of one pack, label branches included.
        workers: Pictures that are decoded at a time.
        info: Where the calibration temperatures come from.
        pool: Processes that decode; threads of this process where None. Closed with the engine.
        features: Visual tokens whose features are kept for pictures that come again.
        cache_tokens: Tokens of rows with free text that are under way at a time; two packs of them where None.
        window: Rows sorted by length together.
        lanes: Packs that pass the model at a time.
        on_bad_row: Called with what is wrong with a row whose picture turns out to be damaged; such a row stops
            everything where not given.
    """

    def __init__(
        self, model: Model, encoder: Encoder, *, pack_tokens: int, workers: int, info: FolderInfo | None = None,
        pool: PicturePool | None = None, features: int = 0, cache_tokens: int | None = None, window: int = WINDOW,
        lanes: int = 1, on_bad_row: Callable[[DataError], None] | None = None,
    ) -> None:  # fmt: skip
        self._kept = Kept()
        self.model, self.encoder = model, encoder
        self._info, self._pool = info, pool
        self._feed = Feed(
            encoder, model.device, pack_tokens=pack_tokens, workers=workers, window=window, lanes=lanes,
            pool=pool, features=features, on_bad_row=on_bad_row,
        )  # fmt: skip
        self._clock = Clock(model.hf)
        self._lanes = Lanes(model, self._clock, lanes)
        self._answering = Answering(
            model, encoder, cache_tokens=cache_tokens or 2 * pack_tokens, pack_tokens=pack_tokens, info=info,
            passed=self._clock.scored,
        )  # fmt: skip

    def predict(self, rows: Iterable[SizedRow]) -> Generator[list[Prediction], None, None]:
        """Predictions of a stream of rows; window by window in order, each window's packs as they finish.

        Raises:
            ModelError: The smallest pack does not fit the device's memory.
            DataError: A picture that cannot be read after all.
        """
        self._clock.start()
        self._lanes.start()
        self._kept.clear()
        packs = self._feed.packs(rows)
        under_way: deque[_UnderWay] = deque()
        try:
            coming, alone = self._begun(packs)
            while (ready := self._next(coming)) is not None:
                most = self._lanes.count
                if ready.labels is None:
                    yield from self._answer(ready)
                    most = 0
                else:
                    under_way.append(self._score(ready, under_way, alone))
                while len(under_way) > most:
                    yield self._finish(under_way.popleft())
            while under_way:
                yield self._finish(under_way.popleft())
            yield from self._answer(None)
        finally:
            self._answering.clear()
            wait([one.passed for one in under_way if not one.passed.cancel()])
            packs.close()

    def spent(self) -> dict[str, float]:
        """Seconds of the run so far by part: tower, language, labels, vision wait, host."""
        return self._clock.spent(self._lanes.clocks)

    def close(self) -> None:
        """End threads and processes; safe to call twice."""
        self._feed.close()
        self._lanes.close()
        self._clock.stop()
        if self._pool is not None:
            self._pool.close()

    def _begun(self, packs: Iterator[Ready]) -> tuple[Iterator[Ready], bool]:
        """The packs, and whether there is but one; where one passes at a time that is all the same."""
        if self._lanes.count == 1:
            return packs, True
        first = [ready for ready in (self._next(packs), self._next(packs)) if ready is not None]
        return chain(first, packs), len(first) == 1

    def _next(self, packs: Iterator[Ready]) -> Ready | None:
        begin, idle = time.perf_counter(), self._lanes.idle
        ready = next(packs, None)
        self._clock.waited(idle * (time.perf_counter() - begin))
        return ready

    def _answer(self, ready: Ready | None) -> Iterator[list[Prediction]]:
        """Take up a pack of rows with free text; None when there are no more, and all that are under way end."""
        with _memory_named(ready):
            if ready is None:
                yield from self._answering.rest()
            else:
                yield from self._answering.take(ready, self._kept)
                self._kept.drop_but(ready.keys)

    def _score(self, ready: Ready, under_way: Iterable[_UnderWay], alone: bool) -> _UnderWay:
        """Hand a pack to the device; on a GPU this returns long before it is through."""
        tower = ready.batch.tower
        known = tower.known if tower is not None else ()
        if known:  # what earlier packs make
            for one in under_way:
                self._through(one)
        with _memory_named(ready):
            held = Kept({key: self._kept[key] for key in known})
            scored = _UnderWay(ready, self._lanes.score(ready, held, alone=alone))
        if alone:
            self._through(scored)
        return scored

    def _through(self, one: _UnderWay) -> Arriving:
        """Wait until a pack went through the model, and take up the features that it made; packs come in order."""
        if one.scores is None:
            one.scores, made = one.passed.result()
            self._kept.update(made)
            self._kept.drop_but(one.ready.keys)
        return one.scores

    def _finish(self, one: _UnderWay) -> list[Prediction]:
        """The predictions of a pack, waiting for them where they are not there yet."""
        ready, scores = one.ready, self._through(one)
        assert ready.labels is not None, "rows with free text are not scored like this"
        found = gather_labels(scores.wait(), ready.pack, ready.labels)
        return [
            self._prediction(row, labels.names, logprobs)
            for row, labels, logprobs in zip(ready.encoded, ready.labels, found)
        ]

    def _prediction(self, row: Encoded, names: Sequence[str], logprobs: Any) -> Prediction:
        said = dict(zip(names, map(float, logprobs)))
        notes: dict[str, Any] = {**row.notes, "tokens": len(row), "calls": 1, "output_tokens": 0}
        return Prediction(
            id=row.id,
            task=row.task,
            label=names[int(logprobs.argmax())],
            logprobs=said,
            probabilities=calibrated(said, self._info, row.task),
            notes=notes,
        )


@contextmanager
def _memory_named(ready: Ready | None) -> Iterator[None]:
    """Say what can be done where a pass does not fit the memory."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        what = "the rows under way do"
        if ready is not None:
            what = f"a pack of {len(ready.encoded)} rows and {len(ready.pack.ids)} tokens does"
        raise ModelError(f"{what} not fit the GPU's memory ({first_line(error)}); lower predict.pack_tokens") from error
