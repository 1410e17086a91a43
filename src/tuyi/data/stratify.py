"""Dividing rows into parts: every stratum in proportion, groups kept whole."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

__all__ = ["Stratum", "divide"]

Stratum: TypeAlias = tuple[str, str]
"""Task and label."""


def divide(strata: Sequence[Stratum], groups: Sequence[int], shares: Sequence[float], seed: int) -> list[int]:
    """The part of each row, as an index into ``shares``.

    Args:
        strata: Task and label of each row.
        groups: Rows with the same number stay in one part.
        shares: Share of each part; together 1.
        seed: Another seed gives another division.
    """
    members: dict[int, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    order = list(members)
    random.Random(seed).shuffle(order)
    # Large groups first: what is left over can still be evened out with small ones.
    order.sort(key=lambda group: -len(members[group]))
    plan = _Plan(Counter(strata), shares)
    sides = [0] * len(strata)
    late = []
    for group in order:
        content = Counter(strata[row] for row in members[group])
        side = plan.owed(content)
        if side is None:
            late.append((group, content))
            continue
        plan.put(content, side)
        for row in members[group]:
            sides[row] = side
    for group, content in late:
        side = plan.best_left(content)
        plan.put(content, side)
        for row in members[group]:
            sides[row] = side
    return sides


class _Plan:
    """How many rows of each stratum each part should get, and has got so far.

    Each part is owed the whole rows of its share; what is left over after that goes where the part as a whole is
    furthest behind, so that many small strata do not all round the same way.
    """

    def __init__(self, totals: Counter[Stratum], shares: Sequence[float]) -> None:
        largest = shares.index(max(shares))
        self._share = shares
        self._totals = totals
        self._floor = {
            stratum: [
                max(1 if side == largest else 0, math.floor(rows * share + 1e-9)) for side, share in enumerate(shares)
            ]
            for stratum, rows in totals.items()
        }
        self._got: dict[Stratum, list[int]] = {stratum: [0] * len(shares) for stratum in totals}
        self._all = totals.total()
        self._size = [0] * len(shares)

    def owed(self, content: Counter[Stratum]) -> int | None:
        """The part that is owed most of a group's rows; None where no part is owed any."""
        scores = []
        for side in range(len(self._share)):
            due = sum(
                min(rows, max(0, self._floor[stratum][side] - self._got[stratum][side]))
                for stratum, rows in content.items()
            )
            behind = sum(self._behind(stratum, side) * rows for stratum, rows in content.items())
            scores.append((due - self._excess(content, side), behind, -side, due))
        best = max(scores)
        return -best[2] if best[3] > 0 else None

    def best_left(self, content: Counter[Stratum]) -> int:
        """The part for a group that nobody is owed: not beyond its share, then the one furthest behind."""
        sides = range(len(self._share))
        return max(sides, key=lambda side: (-self._excess(content, side), self._missing(side), -side))

    def _excess(self, content: Counter[Stratum], side: int) -> int:
        return sum(
            max(
                0, self._got[stratum][side] + rows - max(1, math.ceil(self._totals[stratum] * self._share[side] - 1e-9))
            )
            for stratum, rows in content.items()
        )

    def _ceiling(self, stratum: Stratum, side: int) -> int:
        return max(1, math.ceil(self._totals[stratum] * self._share[side] - 1e-9))

    def _behind(self, stratum: Stratum, side: int) -> float:
        return self._totals[stratum] * self._share[side] - self._got[stratum][side]

    def _missing(self, side: int) -> float:
        return self._all * self._share[side] - self._size[side]

    def put(self, content: Counter[Stratum], side: int) -> None:
        """Give a group to a part."""
        for stratum, rows in content.items():
            self._got[stratum][side] += rows
            self._size[side] += rows
