"""The process of one device: loads the model there and labels the rows that come through a socket."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import TYPE_CHECKING, Literal, TypeAlias

from tuyi.errors import DataError, TuyiError
from tuyi.predict.engine import Engine, SizedRow
from tuyi.predict.prediction import Prediction
from tuyi.task.catalog import TaskSet

if TYPE_CHECKING:
    from tuyi.predict.settings import PredictSettings

__all__ = ["Answer", "Crash", "Job", "Said", "Skipped", "main"]

_GRACE = 10.0
"""Seconds in which a worker ends by itself once its engine is gone."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is told first.

    Args:
        model: A model folder, hub id or built-in name.
        tasks: The tasks to ask.
        settings: The worker's own: its device, and its share of the picture workers.
        threads: Its share of the processor cores.
        skips: Whether a row that turns out to be damaged is left out instead of stopping the run.
    """

    model: str
    tasks: TaskSet
    settings: PredictSettings
    threads: int
    skips: bool = False


@dataclass(frozen=True, slots=True)
class Crash:
    """The last words of a worker that ends because of an error that is not the user's."""

    text: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row that was left out, and why."""

    error: DataError


@dataclass(frozen=True, slots=True)
class Said:
    """A line for people."""

    line: str


Answer: TypeAlias = Literal["ready", "room"] | list[Prediction] | Skipped | Said | TuyiError | Crash
"""What a worker says: that the model is loaded, that there is room for a chunk, what became of rows, why it ends."""


class _Gone(Exception):
    """The engine that started this worker has closed the socket or died."""


class _Socket:
    """The worker's end: chunks come in through a thread, so that rows lie ready while the model works."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._messages: SimpleQueue[bytes | None] = SimpleQueue()

    def send(self, answer: Answer) -> None:
        try:
            with self._lock:
                self._connection.send(answer)
        except OSError as error:
            raise _Gone from error

    def listen(self) -> None:
        threading.Thread(target=self._listen, daemon=True, name="rows in").start()

    def stream(self) -> Iterator[SizedRow]:
        """Rows until the next flush, which is an empty chunk; asks for a chunk whenever it begins one."""
        while True:
            message = self._messages.get()
            if message is None:
                raise _Gone
            chunk: list[SizedRow] = pickle.loads(message)
            if not chunk:
                return
            self.send("room")
            yield from chunk

    def _listen(self) -> None:
        try:
            while True:
                self._messages.put(self._connection.recv_bytes())
        except (EOFError, OSError):
            self._messages.put(None)
        # The model may be loading or in a long pack; helpers that it started are in the same process group.
        time.sleep(_GRACE)
        os.killpg(os.getpgrp(), signal.SIGTERM)


def main(fd: int) -> None:
    """Label rows until the socket is closed.

    Args:
        fd: The worker's end of the socket, inherited; a :class:`Job` comes first, then chunks and flushes.
    """
    connection = Connection(fd)
    socket = _Socket(connection)
    with contextlib.suppress(_Gone):
        try:
            _work(_first(connection), socket)
        except TuyiError as error:
            socket.send(error)
            sys.exit(1)
        except _Gone:
            raise
        except Exception as error:
            socket.send(Crash("".join(traceback.format_exception_only(error)).strip()))
            raise


def _first(connection: Connection) -> Job:
    try:
        job: Job = connection.recv()
    except (EOFError, OSError) as error:
        raise _Gone from error
    return job


def _work(job: Job, socket: _Socket) -> None:
    socket.listen()
    engine = _open(job, socket)
    try:
        socket.send("ready")
        while True:
            for predictions in engine.predict(socket.stream()):
                socket.send(predictions)
    finally:
        engine.close()


def _open(job: Job, socket: _Socket) -> Engine:
    import torch

    from tuyi.predict.loading import Job as Local
    from tuyi.predict.loading import open_local

    torch.set_num_threads(job.threads)
    device = torch.device(str(job.settings.device))
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # kernels that are compiled on the spot go to the current device
    skip = (lambda error: socket.send(Skipped(error))) if job.skips else None
    return open_local(
        Local(job.model, job.tasks, job.settings, rows=0, skip=skip), tell=lambda line: socket.send(Said(line))
    )
