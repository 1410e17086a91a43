"""The steps of a run: which rows each has, and which of them this process computes."""

from __future__ import annotations

from collections.abc import Sequence

from torch.utils.data import Dataset

from tuyi.encode.survey import Survey
from tuyi.train.plan import Plan, spread

__all__ = ["Steps"]


class Steps(Dataset[dict[str, int]]):
    """Step number to itself, as transformers' loop draws it, and what there is to know of a step.

    Args:
        rows: The surveyed rows.
        plan: Which rows make up which step.
        weights: Weight of each row in the loss.
        rank, world: This process, and how many there are.
        pack_tokens: Most tokens of a pack; of all packs that run side by side.
        lanes: Packs that this process runs side by side.
    """

    def __init__(
        self, rows: Survey, plan: Plan, weights: Sequence[float], *, rank: int, world: int, pack_tokens: int,
        lanes: int = 1,
    ) -> None:  # fmt: skip
        self.rows, self.plan, self.weights, self.lanes = rows, plan, weights, lanes
        self._rank, self._world, self._pack_tokens = rank, world, pack_tokens

    def __len__(self) -> int:
        return self.plan.steps

    def __getitem__(self, step: int) -> dict[str, int]:
        return {"step": step}

    def packs(self, step: int) -> list[list[int]]:
        """Row numbers of each pack that this process computes in a step; empty ones keep it in step with the others."""
        rows = self.plan.rows(step)
        lanes, sizes = self.lanes, self.plan.tokens[rows].tolist()
        own = spread(rows, sizes, self._world * lanes, self._pack_tokens // lanes)[self._rank * lanes :][:lanes]
        packs = [pack for side_by_side in zip(*own, strict=True) for pack in side_by_side]
        return packs if lanes == 1 else [pack for pack in packs if pack]

    def ids(self, step: int) -> list[str]:
        """Ids of a step's rows, for messages."""
        return [self.rows.rows[row].id for row in self.plan.rows(step).tolist()]

    def rows_in(self, step: int) -> int:
        """Rows of a step, over all processes."""
        return len(self.plan.rows(step))

    def epoch_at(self, step: int) -> float:
        """Passes over the rows that are done after ``step`` steps."""
        return self.plan.epoch_at(step)

    def weight(self, step: int) -> float:
        """Sum of the weights of all supervised tokens of a step, over all processes."""
        return float(sum(self.rows.supervised[row] * self.weights[row] for row in self.plan.rows(step).tolist()))
