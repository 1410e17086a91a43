"""The line of requests that are read and wait for the model."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence

from tuyi.serve.jobs import Job
from tuyi.serve.refusals import RefusalError

__all__ = ["Line"]

_WRITTEN = 4
"""Most tokens of requests whose answers wait to be written, in multiples of ``ahead``; further ones are refused, since
reading, for all kinds of requests, must not stop for them."""


class Line:
    """Requests between the threads that read them and the one that runs the model.

    Args:
        pack_tokens: Most tokens that are taken together.
        max_wait: Most seconds that a request waits for others.
        limit: Requests that may be here at a time.
        ahead: Tokens of read requests that may wait; those who read pause above that, so that memory stays bounded.
    """

    def __init__(self, pack_tokens: int, max_wait: float, limit: int, ahead: int) -> None:
        self.pack_tokens = pack_tokens
        self._max_wait, self._limit, self._ahead = max_wait, limit, ahead
        self._waiting: deque[Job] = deque()
        self._written: deque[Job] = deque()
        self._tokens = self._written_tokens = 0
        self._coming = 0
        self._coming_slowly = 0
        self._closed = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return self._coming + self._coming_slowly + len(self._waiting) + len(self._written)

    def enter(self) -> None:
        """A request comes, and is going to be read.

        Raises:
            RefusalError: There is no room for it, or the server is about to stop.
        """
        with self._changed:
            if self._closed:
                raise RefusalError(503, "the server is stopping; try again elsewhere", code="stopping", retry_after=5)
            if len(self) >= self._limit:
                raise RefusalError(
                    429,
                    f"{self._limit} requests are waiting already; try again later",
                    code="queue_full",
                    retry_after=1,
                )
            self._coming += 1

    def pause(self) -> None:
        """Wait as long as enough requests are read."""
        with self._changed:
            while max(self._tokens, self._written_tokens) > self._ahead and not self._closed:
                self._changed.wait()

    def wait_less(self) -> None:
        """One that is being read takes its time: nobody waits for it."""
        with self._changed:
            self._coming -= 1
            self._coming_slowly += 1
            self._changed.notify_all()

    def add(self, job: Job | None, *, slowly: bool = False) -> None:
        """A request that came was read; None where there is nothing of it to be answered.

        Args:
            job: It.
            slowly: Whether it took its time.

        Raises:
            RefusalError: Its answer is to be written, and too many are waiting for that.
        """
        with self._changed:
            if slowly:
                self._coming_slowly -= 1
            else:
                self._coming -= 1
            if job is not None and job.asked.script is not None:
                held = sum(one.asked.tokens for one in self._written)
                if held and held + job.asked.tokens > _WRITTEN * self._ahead:
                    self._changed.notify_all()
                    message = f"answers to {held} tokens are waiting to be written already; try again later"
                    raise RefusalError(429, message, code="queue_full", retry_after=1)
                self._written.append(job)
                self._written_tokens += job.asked.tokens
            elif job is not None:
                self._waiting.append(job)
                self._tokens += job.asked.tokens
            self._changed.notify_all()

    def take(self, least: int = 0, wait: float | None = None) -> list[Job] | None:
        """Requests whose labels are scored together, oldest first; none as soon as there is one to be written.

        Args:
            least: Take nothing as long as fewer tokens wait.
            wait: Most seconds to wait for a first request; for ever where not given.

        Returns:
            None once the line is closed and empty.
        """
        until = None if wait is None else time.monotonic() + wait
        with self._changed:
            while True:
                self._drop_gone()
                patience = None
                if self._waiting and self._tokens >= least:
                    patience = self._patience()
                    if patience <= 0:
                        taken = _first(self._waiting, self.pack_tokens)
                        self._tokens -= sum(job.asked.tokens for job in taken)
                        self._changed.notify_all()
                        return taken
                elif self._closed and not len(self):
                    return None
                if self._written:
                    return []
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    return []
                self._changed.wait(min((one for one in (patience, left) if one is not None), default=None))

    def written(self, most: int) -> list[Job]:
        """Requests whose answers are to be written, oldest first, with prompts of at most so many tokens together."""
        with self._changed:
            self._drop_gone()
            taken = _first(self._written, most)
            self._written_tokens -= sum(job.asked.tokens for job in taken)
            self._changed.notify_all()
            return taken

    def back(self, jobs: Sequence[Job]) -> None:
        """These could not be taken up yet; they stay the first of those that are written."""
        with self._changed:
            self._written.extendleft(reversed(jobs))
            self._written_tokens += sum(job.asked.tokens for job in jobs)

    def empty(self) -> list[Job]:
        """All that wait; they are not going to be taken."""
        with self._changed:
            jobs = [*self._waiting, *self._written]
            self._waiting.clear()
            self._written.clear()
            self._tokens = self._written_tokens = 0
            self._changed.notify_all()
            return jobs

    def close(self) -> None:
        """No further requests come."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _patience(self) -> float:
        """Seconds for which those who wait go on waiting for others that are being read."""
        if not self._coming or self._tokens >= self.pack_tokens or self._closed:
            return 0.0
        return self._waiting[0].read_at + self._max_wait - time.monotonic()

    def _drop_gone(self) -> None:
        if any(job.is_gone for job in (*self._waiting, *self._written)):
            self._waiting = deque(job for job in self._waiting if not job.is_gone)
            self._written = deque(job for job in self._written if not job.is_gone)
            self._tokens = sum(job.asked.tokens for job in self._waiting)
            self._written_tokens = sum(job.asked.tokens for job in self._written)
            self._changed.notify_all()


def _first(waiting: deque[Job], most: int) -> list[Job]:
    taken: list[Job] = []
    total = 0
    while waiting and (not taken or total + waiting[0].asked.tokens <= most):
        taken.append(waiting.popleft())
        total += taken[-1].asked.tokens
    return taken
