"""Labels of many requests scored together, a pack on the device while the next is made."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tuyi.encode.pack import Pack, pack
from tuyi.model.forward import Batch, to_device
from tuyi.model.kept import Kept, Plan
from tuyi.model.load import Model
from tuyi.predict.scoring import score_tokens
from tuyi.serve.jobs import Labelled, Row

__all__ = ["Scorer", "Started"]


@dataclass(frozen=True, eq=False, slots=True)
class Started:
    """A pack that has been handed to the device: its scores arrive there once ``done`` has happened."""

    rows: Sequence[Row]
    packed: Pack
    scores: Tensor
    done: torch.cuda.Event | None
    begun: float

    @property
    def is_done(self) -> bool:
        """Whether the scores are there."""
        return self.done is None or bool(self.done.query())


class Scorer:
    """Scores rows; for one thread.

    Args:
        model: The model.
        features: Visual tokens whose features are kept for pictures that come again.
    """

    def __init__(self, model: Model, features: int) -> None:
        self.model = model
        self._plan, self._kept = Plan(features), Kept()
        self._copies = torch.cuda.Stream(model.device) if model.device.type == "cuda" else None

    def start(self, rows: Sequence[Row]) -> Started:
        """Hand rows to the device; on a GPU this returns long before they are through."""
        begun = time.monotonic()
        rows = sorted(rows, key=lambda row: (row.encoded.task, -len(row.encoded)))
        packed = pack([row.encoded for row in rows], [row.choice for row in rows], self._plan)
        visuals = [visual for visual in (packed.images, packed.videos) if visual is not None]
        self._plan.use([used for visual in visuals for used in visual.uses()])
        scores = score_tokens(self.model, self._copied(packed), packed, self._kept)
        self._kept.drop_but(frozenset(self._plan))
        if not scores.is_cuda:
            return Started(rows, packed, scores, None, begun)
        host = torch.empty(scores.shape, dtype=scores.dtype, pin_memory=True)
        host.copy_(scores, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        return Started(rows, packed, host, done, begun)

    def finish(self, started: Started) -> dict[Row, Labelled]:
        """The scores of a pack, waiting for them where they are not there yet."""
        if started.done is not None:
            started.done.synchronize()
        tokens = np.empty(len(started.scores))
        tokens[started.packed.order] = started.scores.double().numpy()
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

    def _copied(self, packed: Pack) -> Batch:
        """The pack on the device, copied while the device works on another."""
        if self._copies is None:
            return to_device(packed, self.model.spec, self.model.device)
        with torch.cuda.stream(self._copies):
            batch = to_device(packed, self.model.spec, self.model.device)
        self._copies.synchronize()
        runs_on = torch.cuda.current_stream(self.model.device)
        for tensor in batch.tensors():
            tensor.record_stream(runs_on)
        return batch
