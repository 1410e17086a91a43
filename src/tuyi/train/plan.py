"""Which rows make up which step, and how a step's rows are spread over processes and packs.

A run is a list of steps, known from the seed and the rows' lengths before it starts; a step depends on nothing that
happened before it. So a resumed run, however often it was killed, meets the rows of the unbroken one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["Plan", "spread"]

Rows = NDArray[np.int64]


class Plan:
    """The steps of a run.

    Args:
        tokens: Length of each row.
        epochs: Passes over the rows; the last may be partial.
        seed: Of the row order.
        batch_rows: Rows a step.
        batch_tokens: Tokens a step, instead of rows; a step ends before the row that would exceed them.
        max_steps: Most steps.
        order: The rows of an epoch, in order, by its number, as many as there are; every row once, shuffled, where not
            given. It has to give the same rows for the same number, whichever epochs were asked for before.
    """

    def __init__(
        self,
        tokens: Sequence[int],
        *,
        epochs: float,
        seed: int,
        batch_rows: int,
        batch_tokens: int | None = None,
        max_steps: int | None = None,
        order: Callable[[int], Rows] | None = None,
    ) -> None:
        self.tokens = np.asarray(tokens, np.int64)
        self._seed, self._batch_rows, self._batch_tokens = seed, batch_rows, batch_tokens
        self._order = lru_cache(maxsize=4)(order or self._shuffled)  # asked for in every step
        self._first: list[int] = [0]  # the step at which each epoch begins
        while len(self._first) - 1 < epochs:
            share = min(1.0, epochs - (len(self._first) - 1))
            steps = len(self._cuts(len(self._first) - 1)) - 1
            self._first.append(self._first[-1] + int(np.ceil(steps * share - 1e-9)))
        self.steps = min(self._first[-1], max_steps or self._first[-1])

    def rows(self, step: int) -> Rows:
        """Row numbers of a step, counted over all epochs."""
        epoch = int(np.searchsorted(self._first, step, side="right")) - 1
        cuts, inner = self._cuts(epoch), step - self._first[epoch]
        return self._order(epoch)[cuts[inner] : cuts[inner + 1]]

    def epoch_at(self, step: int) -> float:
        """How many passes over the rows are done after ``step`` steps."""
        epoch = min(int(np.searchsorted(self._first, step, side="right")), len(self._first) - 1) - 1
        return epoch + (step - self._first[epoch]) / (len(self._cuts(epoch)) - 1)

    def _shuffled(self, epoch: int) -> Rows:
        return np.random.default_rng([self._seed, epoch]).permutation(len(self.tokens))

    def _cuts(self, epoch: int) -> Rows:
        """Where steps begin and end in an epoch's order."""
        count = len(self.tokens)
        if self._batch_tokens is None:
            return np.append(np.arange(0, count, self._batch_rows), count)
        ends = np.cumsum(self.tokens[self._order(epoch)])
        cuts = [0]
        while cuts[-1] < count:
            before = ends[cuts[-1] - 1] if cuts[-1] else 0
            cuts.append(max(cuts[-1] + 1, int(np.searchsorted(ends, before + self._batch_tokens, side="right"))))
        return np.asarray(cuts)


def spread(rows: Rows, sizes: Sequence[int], world: int, budget: int) -> list[list[list[int]]]:
    """Spread a step's rows over processes, and each process's rows over packs, alike in number and size.

    Every process gets the same number of packs, since processes that share weights must run in step. Where a step has
    fewer rows than processes, some packs stay empty.

    Args:
        rows: Row numbers of the step.
        sizes: Tokens of each of them.
        world: Number of processes.
        budget: Most tokens of a pack; a larger row stands alone.

    Returns:
        For each process, for each pass, row numbers.
    """
    largest_first = sorted(zip(sizes, map(int, rows)), key=lambda pair: (-pair[0], pair[1]))
    count = world * -(-_first_fit(largest_first, budget) // world)
    while True:
        bins: list[list[int]] = [[] for _ in range(count)]
        fill = [0] * count
        for size, row in largest_first:
            emptiest = min(range(count), key=lambda i: fill[i])
            bins[emptiest].append(row)
            fill[emptiest] += size
        if all(total <= budget or len(pack) == 1 for total, pack in zip(fill, bins)):
            break
        count += world
    order = sorted(range(count), key=lambda i: -fill[i])
    return [[bins[i] for i in order[rank::world]] for rank in range(world)]


def _first_fit(largest_first: list[tuple[int, int]], budget: int) -> int:
    """Packs that first-fit-decreasing needs."""
    fill: list[int] = []
    for size, _ in largest_first:
        for index, total in enumerate(fill):
            if total + size <= budget:
                fill[index] += size
                break
        else:
            fill.append(size)
    return len(fill)
