"""The engine: threads that read requests, and one that owns the model and answers them together."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from tuyi.errors import DataError
from tuyi.serve.jobs import Answered, Event, Failed, Job, Row
from tuyi.serve.line import Line
from tuyi.serve.metrics import Metrics
from tuyi.serve.refusals import RefusalError, refused
from tuyi.serve.scorer import Scorer, Started
from tuyi.serve.writer import Writer

__all__ = ["Engine"]

_IN_FLIGHT = 2
_SLOW = 4
"""There is one thread for requests that are read slowly, such as videos, to so many others."""
_POLL = 0.001
_WORTH = 4
"""A pack is started behind another where it has at least this share of a full one: fewer rows had better wait."""


class Engine:
    """Answers requests of one event loop.

    Args:
        models: What scores and what writes with each model.
        by_task: Number of the model of each task.
        line: Where requests wait.
        workers: Threads that read.
        metrics: What is counted.
        failed: Called, from the engine's own thread, should it end by an error.
    """

    def __init__(
        self, models: Sequence[tuple[Scorer, Writer]], by_task: Mapping[str, int], line: Line, *, workers: int,
        metrics: Metrics, failed: Callable[[BaseException], None],
    ) -> None:  # fmt: skip
        self._scorers, self._writers = [scorer for scorer, _ in models], [writer for _, writer in models]
        self._by_task, self._line, self._metrics, self._failed = by_task, line, metrics, failed
        self._readers = ThreadPoolExecutor(workers, "read")
        self._slow_readers = ThreadPoolExecutor(max(1, workers // _SLOW), "read-slowly")
        self._owner = ThreadPoolExecutor(1, "model")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running: deque[tuple[Scorer, Started, Mapping[Row, Job]]] = deque()
        self._turn: Future[None] | None = None
        self._starting: Sequence[Job] = ()

    @property
    def is_ready(self) -> bool:
        """Whether requests are answered."""
        return self._turn is not None and not self._turn.done()

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to answer requests, whose mails belong to this loop."""
        self._loop = loop
        self._turn = self._owner.submit(self._run)
        self._turn.add_done_callback(self._ended)

    def submit(self, job: Job) -> None:
        """Take a request in.

        Raises:
            RefusalError: The queue is full, or the server is about to stop.
        """
        if not self.is_ready:
            raise RefusalError(503, "the model is not ready; try again later", code="not_ready", retry_after=5)
        self._line.enter()
        self._readers.submit(self._read, job).add_done_callback(lambda read: self._was_read(job, read))

    def close(self) -> None:
        """Answer what has come, and end; waits for that."""
        self._line.close()
        self._readers.shutdown(wait=True)
        self._slow_readers.shutdown(wait=True)
        self._owner.shutdown(wait=True)

    def _read(self, job: Job) -> Row | Callable[[], Row] | None:
        self._line.pause()
        job.begun = time.monotonic()
        if job.is_gone:
            return None
        found = job.read(job)
        return found if callable(found) else self._checked(found)

    def _read_on(self, job: Job, rest: Callable[[], Row]) -> Row | None:
        return None if job.is_gone else self._checked(rest())

    def _checked(self, row: Row) -> Row:
        if row.script is not None:
            room = self._writers[self._by_task[row.task]].cache_tokens
            if (needed := len(row.encoded) + row.script.most) > room:
                message = f"expected at most {room} tokens, answer included; found {needed}"
                raise RefusalError(400, message, code="context_length_exceeded")
        return row

    def _was_read(self, job: Job, read: Future[Any], *, slowly: bool = False) -> None:
        """In the thread that read, whatever became of it."""
        error = read.exception()
        if error is not None:
            self._line.add(None, slowly=slowly)
            self._refuse(job, error)
        elif callable(rest := read.result()):
            self._line.wait_less()
            reading = self._slow_readers.submit(self._read_on, job, rest)
            reading.add_done_callback(lambda read: self._was_read(job, read, slowly=True))
        else:
            job.row, job.read_at = read.result(), time.monotonic()
            try:
                self._line.add(job if job.row is not None else None, slowly=slowly)
            except RefusalError as refusal:
                self._refuse(job, refusal)
            if not self.is_ready:
                self._give_up(self._line.empty())

    def _refuse(self, job: Job, error: BaseException) -> None:
        self._post([(job, Failed(refused(error) if isinstance(error, DataError) else error))])

    def _run(self) -> None:
        """In the model's thread, until the line is closed and empty."""
        while True:
            is_writing = any(self._writers)
            if self._running and len(self._running) < _IN_FLIGHT and not is_writing:
                jobs: Sequence[Job] | None = self._meanwhile()
            elif len(self._running) == _IN_FLIGHT:
                jobs = []
            else:
                jobs = self._line.take(wait=0 if self._running or is_writing else None)
            if jobs is None and not self._running and not is_writing:
                return
            self._start(jobs or [])
            if self._running and (not jobs or self._running[0][1].is_done):
                self._finish()
            self._take_up()
            for writer in self._writers:
                self._step(writer)

    def _meanwhile(self) -> list[Job]:
        """Requests worth a pack of their own behind the one that runs, should they come before it is through."""
        while not self._running[0][1].is_done:
            if jobs := self._line.take(self._line.pack_tokens // _WORTH, _POLL):
                return jobs
        return []

    def _take_up(self) -> None:
        """Let requests that are written join, as far as there is room for them."""
        jobs = self._line.written(self._line.pack_tokens)
        by_model: dict[int, list[Job]] = {}
        for job in jobs:
            by_model.setdefault(self._by_task[job.asked.task], []).append(job)
        for model, mine in by_model.items():
            while mine and not self._join(self._writers[model], mine):
                self._line.back(mine[len(mine) // 2 :])
                mine = mine[: len(mine) // 2]

    def _join(self, writer: Writer, jobs: Sequence[Job]) -> bool:
        """Whether there was room for these, or the device has none even for a single one."""
        self._starting = jobs
        try:
            events = writer.join(jobs)
        except torch.cuda.OutOfMemoryError:
            self._fail([*jobs, *writer.clear()])
            return True
        if events is None:
            return False
        self._metrics.passed(len(jobs), sum(job.asked.tokens for job in jobs))
        self._tell(events)
        return True

    def _step(self, writer: Writer) -> None:
        if not len(writer):
            return
        try:
            self._tell(writer.step())
        except torch.cuda.OutOfMemoryError:
            self._fail(writer.clear())

    def _tell(self, events: Sequence[tuple[Job, Event]]) -> None:
        ended = [event for _, event in events if isinstance(event, Answered)]
        self._metrics.wrote(sum(event.output_tokens for event in ended), sum(event.cached for event in ended))
        if events:
            self._post(events)

    def _fail(self, jobs: Sequence[Job]) -> None:
        """These do not fit the device's memory."""
        torch.cuda.empty_cache()
        error = RefusalError(503, "the request does not fit the memory of the model's device", code="memory")
        self._post([(job, Failed(error)) for job in jobs])

    def _start(self, jobs: Sequence[Job]) -> None:
        by_model: dict[int, list[Job]] = {}
        for job in jobs:
            by_model.setdefault(self._by_task[job.asked.task], []).append(job)
        for model, mine in by_model.items():
            self._start_on(self._scorers[model], mine)

    def _start_on(self, scorer: Scorer, jobs: Sequence[Job]) -> None:
        rows = {job.asked: job for job in jobs}
        self._starting = jobs
        try:
            self._running.append((scorer, scorer.start(list(rows)), rows))
        except torch.cuda.OutOfMemoryError:
            scorer.clear()
            while self._running:
                self._finish()
            torch.cuda.empty_cache()
            if len(jobs) == 1:
                self._fail(jobs)
                return
            self._start_on(scorer, jobs[: len(jobs) // 2])
            self._start_on(scorer, jobs[len(jobs) // 2 :])

    def _finish(self) -> None:
        scorer, started, rows = self._running[0]
        found = scorer.finish(started)
        self._running.popleft()
        self._metrics.passed(len(rows), sum(row.tokens for row in rows))
        self._post([(rows[row], labelled) for row, labelled in found.items()])

    def _post(self, events: Sequence[tuple[Job, Event]]) -> None:
        """Hand events to the loop, all at once; from any thread."""
        assert self._loop is not None, "requests come once the engine is started"
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_deliver, events)

    def _ended(self, turn: Future[None]) -> None:
        if (error := turn.exception()) is None:
            return
        self._line.close()
        running = [job for _, _, rows in self._running for job in rows.values()]
        writing = [job for writer in self._writers for job in writer.jobs]
        self._give_up([*running, *writing, *self._starting, *self._line.empty()])
        self._failed(error)

    def _give_up(self, jobs: Sequence[Job]) -> None:
        error = RefusalError(503, "the server has to be started again; try again later", code="engine", retry_after=5)
        self._post([(job, Failed(error)) for job in jobs])


def _deliver(events: Sequence[tuple[Job, Event]]) -> None:
    for job, event in events:
        job.mail.put_nowait(event)
