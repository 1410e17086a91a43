"""Which rows go to which worker, and when: balanced by length, read lazily, even at the end of a run."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Protocol

from tuyi.predict.engine import SizedRow

__all__ = ["AHEAD", "CHUNK_TOKENS", "Lane", "RowPool", "serve"]

AHEAD = 2
"""Chunks that lie ready at a worker, besides what its engine has taken."""
CHUNK_TOKENS = 32768
"""Tokens that are handed out together: half a second of a 7B model on a data-centre GPU."""


class RowPool:
    """Rows that no worker has yet; read a window at a time, the longest of a window first.

    Args:
        rows: Rows and their tokens.
        window: Rows that are read and sorted together; at most twice as many are held.
    """

    def __init__(self, rows: Iterable[SizedRow], window: int) -> None:
        self._rows: Iterator[SizedRow] = iter(rows)
        self._window = window
        self._waiting: deque[SizedRow] = deque()
        self.tokens = 0
        """Tokens of the rows that are held."""
        self.is_last = False
        """Whether no rows will come but those that are held."""
        self._read()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def take(self, tokens: int) -> list[SizedRow]:
        """The next rows, at least one, until their tokens reach ``tokens``."""
        chunk: list[SizedRow] = []
        size = 0
        while self._waiting and (not chunk or size < tokens):
            chunk.append(self._waiting.popleft())
            size += chunk[-1][1]
        self.tokens -= size
        self._read()
        return chunk

    def put_back(self, rows: Sequence[SizedRow]) -> None:
        """Rows whose worker is gone; they are the next to be taken."""
        self._waiting.extendleft(reversed(rows))
        self.tokens += sum(size for _, size in rows)

    def _read(self) -> None:
        if self.is_last or len(self._waiting) >= self._window:
            return
        window = sorted(islice(self._rows, self._window), key=lambda row: row[1], reverse=True)
        self.is_last = len(window) < self._window
        self._waiting.extend(window)
        self.tokens += sum(size for _, size in window)


class Lane(Protocol):
    """One worker, as far as handing out rows goes."""

    asked: int
    """Chunks that it has room for."""
    flushed: bool
    """Whether it was told to finish what it has without waiting for more."""

    @property
    def tokens(self) -> int:
        """Tokens of the rows that it was handed and has not answered."""
        ...

    def hand(self, rows: Sequence[SizedRow]) -> None:
        """Give it a chunk: one fewer asked for, and no longer flushed."""
        ...

    def flush(self) -> None:
        """Tell it that no rows come for now."""
        ...


def serve(lane: Lane, lanes: Sequence[Lane], pool: RowPool) -> None:
    """Answer what a worker asked for, with rows or with a flush, so that its engine never waits for either.

    Once the last rows are held, a worker that has its even share of all that is unanswered gets no more, and
    chunks shrink to what is missing from that share: all workers end together, however far their engines read ahead.
    A flushed worker is served again when it has nearly nothing left, since each flush costs its engine a fresh start.

    Args:
        lane: The worker.
        lanes: All workers that live, this one among them.
        pool: The rows that nobody has.
    """
    while lane.asked and pool and not (lane.flushed and lane.tokens >= CHUNK_TOKENS):
        missing = CHUNK_TOKENS
        if pool.is_last:
            share = (pool.tokens + sum(one.tokens for one in lanes)) // len(lanes)
            if lane.tokens >= max(share, 1):
                break
            missing = min(CHUNK_TOKENS, share - lane.tokens)
        lane.hand(pool.take(missing))
    if lane.asked and not lane.flushed:
        lane.flush()
