"""Where each person is on the way through the rows."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from itertools import pairwise

__all__ = ["Walk", "Walks"]

_MOST_WALKS = 256
_AWAY_S = 900.0
"""Seconds after which a row is given to others though it stands before somebody."""
_PAUSE_S = 120.0
"""A longer time between two decisions was a pause and does not count as work."""
_COUNTED = 20


class Walk:
    """One person's way: the rows that were seen, and where in them the person is."""

    def __init__(self) -> None:
        self._trail: list[str] = []
        self._at = 0
        self._done: dict[str, int] = {}
        self._times: deque[float] = deque(maxlen=_COUNTED)
        self.skipped: set[str] = set()
        self.asked_at = time.monotonic()

    @property
    def here(self) -> str | None:
        """The row before the person; None at the end of the trail."""
        return self._trail[self._at] if self._at < len(self._trail) else None

    @property
    def last(self) -> tuple[str, int] | None:
        """The row of the last decision that was not taken back, and its revision since then."""
        return next(reversed(self._done.items()), None)

    def forth(self) -> str | None:
        """One row on; None where the trail ends."""
        self._at = min(self._at + 1, len(self._trail))
        return self.here

    def back(self) -> None:
        """One row back; at the first row, nothing."""
        self._at = max(self._at - 1, 0)

    def arrive(self, id: str | None) -> None:
        """Have a new row, if there is one, at the end of the trail, and stand there."""
        self._at = len(self._trail)
        if id is not None:
            self._trail.append(id)

    def decided(self, id: str, revision: int) -> None:
        """A decision was made about a row, which has this revision now."""
        self.skipped.discard(id)
        self._done.pop(id, None)
        self._done[id] = revision
        self._times.append(time.monotonic())

    def undone(self, id: str) -> None:
        """The last decision was taken back: stand before its row."""
        self._done.pop(id, None)
        if self._times:
            self._times.pop()
        if id in self._trail:
            self._at = len(self._trail) - 1 - self._trail[::-1].index(id)
        else:
            self.arrive(id)

    def rate(self) -> float | None:
        """Decisions a minute, pauses left out; None before the second one."""
        times = list(self._times)
        worked = [min(after - before, _PAUSE_S) for before, after in pairwise(times)]
        return 60 * len(worked) / max(sum(worked), 0.001) if worked else None


class Walks:
    """The ways of all who are at work; those unused for longest are forgotten, what they decided is not."""

    def __init__(self) -> None:
        self._walks: OrderedDict[str, Walk] = OrderedDict()

    def __getitem__(self, name: str) -> Walk:
        """The way of this name, a new one where there is none."""
        walk = self._walks.setdefault(name, Walk())
        self._walks.move_to_end(name)
        walk.asked_at = time.monotonic()
        while len(self._walks) > _MOST_WALKS:
            self._walks.popitem(last=False)
        return walk

    def held(self) -> dict[str, None]:
        """The rows before people who have not been away for long, the newest first."""
        since = time.monotonic() - _AWAY_S
        walks = (walk for walk in reversed(self._walks.values()) if walk.asked_at >= since)
        return {walk.here: None for walk in walks if walk.here is not None}
