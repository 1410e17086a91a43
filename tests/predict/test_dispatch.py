"""Handing out rows: lazily, longest first, nothing lost, and all workers at work until the end."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np
import pytest

from tuyi.data.example import Example
from tuyi.predict.dispatch import AHEAD, CHUNK_TOKENS, RowPool, serve
from tuyi.predict.engine import SizedRow

PACK = 16384
SPEED = 50_000  # tokens a second: a 7B model on a large GPU
BUBBLE = 0.4  # seconds until a stream that starts anew has its first pack ready


def sized(sizes: Sequence[int]) -> list[SizedRow]:
    return [(Example(f"r{number}", ()), int(size)) for number, size in enumerate(sizes)]


def test_a_pool_reads_lazily_and_gives_the_longest_first():
    read = []

    def rows() -> Iterator[SizedRow]:
        for row in sized([5, 1, 9, 3, 7, 2, 8]):
            read.append(row)
            yield row

    pool = RowPool(rows(), 3)
    assert (len(read), pool.tokens, pool.is_last) == (3, 15, False)
    first = pool.take(10)
    assert [size for _, size in first] == [9, 5]
    assert len(read) == 6, "one window ahead"
    pool.put_back(first)
    taken = []
    while pool:
        taken.append([size for _, size in pool.take(1)])
    assert taken == [[9], [5], [1], [7], [3], [2], [8]], "at least one row at a time"
    assert (pool.tokens, pool.is_last) == (0, True)
    assert not RowPool((), 3)


class SimulatedLane:
    """A worker whose engine reads windows, packs them and takes time in proportion to tokens."""

    def __init__(self, simulation: Simulation, window: int, speed: float) -> None:
        self.asked, self.flushed, self.tokens = AHEAD, True, 0
        self.flushes, self.ended_at = 0, 0.0
        self._simulation, self._window, self._speed = simulation, window, speed
        self._inbox: deque[list[SizedRow]] = deque()
        self._current: deque[SizedRow] = deque()
        self.busy = False

    def hand(self, rows: Sequence[SizedRow]) -> None:
        self.asked -= 1
        self.flushed = False
        self.tokens += sum(size for _, size in rows)
        self._inbox.append(list(rows))

    def flush(self) -> None:
        self.flushed = True
        self.flushes += 1
        self._inbox.append([])

    def pull(self) -> None:
        """Read a window, as far as rows come without a flush, and schedule its packs."""
        taken: list[int] = []
        fresh = 0.0
        while len(taken) < self._window:
            if not self._current:
                if not self._inbox:
                    self._simulation.serve()
                if not self._inbox:
                    assert self.flushed, "an engine waits for rows and nobody tells it"
                    break
                chunk = self._inbox.popleft()
                if not chunk:
                    if taken:
                        break
                    fresh = BUBBLE
                    continue
                self._current.extend(chunk)
                self.asked += 1
                self._simulation.serve()
            taken.append(self._current.popleft()[1])
        at, pack = self._simulation.now + fresh, 0
        self.busy = bool(taken)
        for number, size in enumerate(taken, 1):
            pack += size
            if pack >= PACK or number == len(taken):
                at += pack / self._speed
                self._simulation.schedule(at, self, pack, number == len(taken))
                pack = 0

    def finish(self, tokens: int, is_last: bool) -> None:
        self.tokens -= tokens
        self.ended_at = self._simulation.now
        self._simulation.serve()
        if is_last:
            self.pull()


class Simulation:
    """Several workers on a clock that only events move."""

    def __init__(self, rows: Sequence[SizedRow], window: int, speeds: Sequence[float]) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, SimulatedLane, int, bool]] = []
        self._number = count()
        self._pool = RowPool(rows, 512 * len(speeds))
        self.lanes = [SimulatedLane(self, window, speed) for speed in speeds]

    def serve(self) -> None:
        for lane in self.lanes:
            serve(lane, self.lanes, self._pool)

    def schedule(self, at: float, lane: SimulatedLane, tokens: int, is_last: bool) -> None:
        heapq.heappush(self._events, (at, next(self._number), lane, tokens, is_last))

    def run(self) -> float:
        for lane in self.lanes:
            lane.pull()
        while self._events:
            self.now, _, lane, tokens, is_last = heapq.heappop(self._events)
            lane.finish(tokens, is_last)
            for other in self.lanes:
                if not other.busy or (other.flushed and other.tokens and not self._under_way(other)):
                    other.pull()
        assert not self._pool
        assert not any(lane.tokens for lane in self.lanes)
        return self.now

    def _under_way(self, lane: SimulatedLane) -> bool:
        return any(event[2] is lane for event in self._events)


@pytest.mark.parametrize("window", [64, 300, 1024])
@pytest.mark.parametrize(
    ("speeds", "loss"), [((1, 1, 1, 1), 0.02), ((1, 1, 1, 0.8), 0.05)], ids=["equal", "one slower"]
)
def test_the_end_of_a_run_costs_little(window: int, speeds: tuple[float, ...], loss: float):
    """10,000 rows on 4 GPUs against tokens that could be shared out like water."""
    sizes = np.random.default_rng(0).lognormal(np.log(2200), 0.5, 10_000).clip(300, 9000)
    rows = sized(sizes.astype(int).tolist())
    simulation = Simulation(rows, window, [SPEED * speed for speed in speeds])
    ideal = sum(size for _, size in rows) / (SPEED * sum(speeds))
    assert simulation.run() < (1 + loss) * ideal
    assert max(lane.flushes for lane in simulation.lanes) <= 12


def test_few_rows_are_shared_from_the_start():
    simulation = Simulation(sized([500] * 24), 1024, [SPEED, SPEED])
    assert CHUNK_TOKENS > 24 * 500
    seconds = simulation.run()
    assert all(lane.ended_at > 0.8 * seconds for lane in simulation.lanes)
