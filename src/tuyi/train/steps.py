"""The steps of a run as a map-style data set: step number to encoded packs of this process."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch.utils.data import Dataset

from tuyi.encode.encoded import Encoded
from tuyi.encode.encoder import Encoder
from tuyi.encode.pack import Pack, pack
from tuyi.encode.survey import Survey
from tuyi.train.plan import Plan, spread

__all__ = ["Steps"]

_CACHE_BYTES = 1 << 30


class Steps(Dataset[list[Pack]]):
    """Encodes a step's rows when it is asked for them.

    Args:
        rows: The surveyed rows.
        encoder: Of the model.
        plan: Which rows make up which step.
        rank, world: This process, and how many there are.
        pack_tokens: Most tokens of a pack.
        keep: Whether rows stay encoded for the next epoch, as long as all together are under 1 GiB; for a data set
            that is read in the main process.
    """

    def __init__(
        self, rows: Survey, encoder: Encoder, plan: Plan, *, rank: int, world: int, pack_tokens: int, keep: bool
    ) -> None:
        self._rows, self._encoder, self._plan = rows, encoder, plan
        self._rank, self._world, self._pack_tokens = rank, world, pack_tokens
        patch_bytes = 3 * encoder.spec.patch_size**2
        size = sum(rows.patches) * patch_bytes + sum(rows.tokens) * 20
        self._kept: dict[int, Encoded] | None = {} if keep and size < _CACHE_BYTES else None

    def __len__(self) -> int:
        return self._plan.steps

    def __getitem__(self, step: int) -> list[Pack]:
        rows = self._plan.rows(step)
        mine = spread(rows, self._plan.tokens[rows].tolist(), self._world, self._pack_tokens)[self._rank]
        # rows lie sorted by length, since dense attention computes neighbours of equal length together; an empty pack
        # holds one row that weighs nothing, so that this process keeps step with the others
        return [pack(sorted(map(self._encode, rows), key=len)) if rows else self._idle() for rows in mine]

    def ids(self, step: int) -> list[str]:
        """Ids of a step's rows, for messages."""
        return [self._rows.rows[row].id for row in self._plan.rows(step).tolist()]

    def rows_in(self, step: int) -> int:
        """Rows of a step, over all processes."""
        return len(self._plan.rows(step))

    def epoch_at(self, step: int) -> float:
        """Passes over the rows that are done after ``step`` steps."""
        return self._plan.epoch_at(step)

    def weight(self, step: int) -> float:
        """Sum of the weights of all supervised tokens of a step, over all processes."""
        return float(
            sum(self._rows.supervised[row] * self._rows.weights[row] for row in self._plan.rows(step).tolist())
        )

    def _encode(self, row: int) -> Encoded:
        if self._kept is not None and row in self._kept:
            return self._kept[row]
        encoded = self._encoder.encode(self._rows.rows[row], labelled=True)
        if self._kept is not None:
            self._kept[row] = encoded
        return encoded

    def _idle(self) -> Pack:
        shortest = int(np.argmin(np.asarray(self._rows.tokens)))
        return pack([replace(self._encode(shortest), weight=0.0)])
