"""A worker process as its engine sees it: started, fed, listened to, ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Literal, TypeAlias

from tuyi.errors import DataError
from tuyi.predict.device_worker import Answer, Job
from tuyi.predict.dispatch import AHEAD
from tuyi.predict.engine import SizedRow
from tuyi.program import start_program

__all__ = ["DeviceProcess", "Event"]


class DeviceProcess:
    """One worker process; a :class:`~tuyi.predict.dispatch.Lane`.

    It is a program of its own that leads a process group, so that the helpers it starts end with it.

    Args:
        job: What it is to do.
        events: Where what it says goes; ``ended`` comes last, after the process is gone.
    """

    def __init__(self, job: Job, events: SimpleQueue[Event]) -> None:
        self.device = str(job.settings.device)
        self.asked = 0
        self.flushed = True
        self.crash: str | None = None
        self._handed: dict[str, SizedRow] = {}
        self._tokens = 0
        self._gone = threading.Event()
        self._events = events
        # the caller's standard output is the caller's
        self._process, self._socket = start_program("tuyi.predict.device_worker", stdout=2)
        # a copy, so that the socket can be shut down whatever the connection is doing in another thread
        self._connection = Connection(os.dup(self._socket.fileno()))
        for work in (self._listen, self._watch):
            threading.Thread(target=work, daemon=True, name=f"{work.__name__} {self.device}").start()
        self._send(job)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def tokens(self) -> int:
        """Tokens of the rows that it was handed and has not answered."""
        return self._tokens

    @property
    def handed(self) -> list[SizedRow]:
        """The rows that it was handed and has not answered."""
        return list(self._handed.values())

    def is_ready(self) -> None:
        """The model is loaded."""
        self.asked = AHEAD

    def hand(self, rows: Sequence[SizedRow]) -> None:
        """Give it a chunk.

        Raises:
            DataError: It has a row of the same id in hand.
        """
        self.asked -= 1
        self.flushed = False
        for row, size in rows:
            if row.id in self._handed:
                raise DataError("another row has the same id; every row needs its own", replace(row.place, id=row.id))
            self._handed[row.id] = (row, size)
            self._tokens += size
        self._send(list(rows))

    def flush(self) -> None:
        """Tell it that no rows come for now."""
        self.flushed = True
        self._send([])

    def answered(self, ids: Iterable[str]) -> None:
        """Take rows off what it was handed."""
        for id in ids:
            _, size = self._handed.pop(id)
            self._tokens -= size

    def how_it_ended(self) -> str:
        """Exit code or signal, and its last words, of a process that is gone."""
        code: int = self._process.returncode
        if code == -signal.SIGKILL:
            return "was killed (exit code -9, SIGKILL: what Linux does to a process when memory runs out)"
        last = f": {self.crash}" if self.crash else ""
        name = f", {signal.Signals(-code).name}" if code < 0 else ""
        return f"ended with exit code {code}{name}{last}"

    def end(self, patience: float) -> None:
        """End the process and what it started, and wait until it is gone.

        Args:
            patience: Seconds that it has to end by itself.
        """
        for seconds, number in ((patience, signal.SIGTERM), (5.0, signal.SIGKILL)):
            if not self._gone.wait(seconds):
                self._signal_group(number)
        self._gone.wait()

    def _send(self, message: Job | list[SizedRow]) -> None:
        # a worker that died keeps its rows in `handed` until its end is noticed
        with contextlib.suppress(OSError):
            self._connection.send(message)

    def _listen(self) -> None:
        try:
            while True:
                self._events.put((self, self._connection.recv()))
        except (EOFError, OSError):
            pass
        finally:
            self.hang_up()
            self._gone.wait()
            self._events.put((self, "ended"))

    def _watch(self) -> None:
        """Notice the end of the process even where a helper that it forked still holds its end of the socket."""
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        # not reaped yet, so the number is still that of its group; SIGTERM spares multiprocessing's resource tracker,
        # which then removes shared memory
        self._signal_group(signal.SIGTERM)
        self._process.wait()
        self.hang_up()
        self._gone.set()

    def hang_up(self) -> None:
        """Close the socket, whereupon the worker ends by itself."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


Event: TypeAlias = tuple[DeviceProcess, Answer | Literal["ended"]]
"""What a worker said, or that it is gone."""
