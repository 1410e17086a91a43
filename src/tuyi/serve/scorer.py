"""Labels of many requests scored together, a pack on the device while the next is made."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tuyi.encode.pack import Pack, pack
from tuyi.model.ahead import Copies
from tuyi.model.forward import to_device
from tuyi.model.kept import Kept, Plan
from tuyi.model.load import Model
from tuyi.predict.scoring import Arriving, in_reading_order, score_tokens
from tuyi.serve.jobs import Labelled, Row

__all__ = ["Scorer", "Started"]


@dataclass(frozen=True, eq=False, slots=True)
class Started:
    """A pack that has been handed to the device."""

    rows: Sequence[Row]
    packed: Pack
    scores: Arriving
    begun: float

    @property
    def is_done(self) -> bool:
        """Whether the scores are there."""
        return self.scores.is_there


class Scorer:
    """Scores rows; for one thread.

    Args:
        model: The model.
        features: Visual tokens whose features are kept for pictures that come again.
    """

    def __init__(self, model: Model, features: int) -> None:
        self.model = model
        self._plan, self._kept = Plan(features), Kept()
        self._copies = Copies(model.device)

    def start(self, rows: Sequence[Row]) -> Started:
        """Hand rows to the device; on a GPU this returns long before they are through."""
        begun = time.monotonic()
        rows = sorted(rows, key=lambda row: (row.encoded.task, -len(row.encoded)))
        packed = pack([row.encoded for row in rows], [row.choice for row in rows], self._plan)
        visuals = [visual for visual in (packed.images, packed.videos) if visual is not None]
        self._plan.use([used for visual in visuals for used in visual.uses()])
        batch = self._copies.made(lambda: to_device(packed, self.model.spec, self.model.device), lambda made: made)
        scores = score_tokens(self.model, batch, packed, self._kept)
        self._kept.drop_but(frozenset(self._plan))
        return Started(rows, packed, Arriving.of(scores), begun)

    def finish(self, started: Started) -> dict[Row, Labelled]:
        """The scores of a pack, waiting for them where they are not there yet."""
        tokens = in_reading_order(started.scores.wait(), started.packed)
        sizes = [len(ids) for row in started.rows for ids in row.choice.ids]
        labels = iter(np.split(tokens, np.cumsum(sizes)[:-1]))
        seconds = time.monotonic() - started.begun
        return {
            row: Labelled([next(labels) for _ in row.choice.ids], len(started.rows), seconds) for row in started.rows
        }

    def clear(self) -> None:
        """Forget all features, as after a pass that failed."""
        self._plan.clear()
        self._kept.clear()
