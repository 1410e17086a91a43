"""Several servers on one port: processes with a model of their own, among which the system divides connections."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

from tuyi.cores import cpu_cores
from tuyi.errors import ConfigError, EngineError, TuyiError
from tuyi.program import start_program
from tuyi.serve.port import bound
from tuyi.serve.settings import ServeSettings
from tuyi.serve.signals import told_to_end
from tuyi.task.catalog import TaskSet

__all__ = ["Asked", "main", "serve_several"]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a process is to serve; as :func:`tuyi.serve.run.serve` is asked."""

    model: str
    task: str | TaskSet | None
    settings: ServeSettings
    budget: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class _Told:
    """A line for people."""

    line: str


@dataclass(frozen=True, slots=True)
class _Listening:
    """The process is about to take connections."""

    line: str


@dataclass(frozen=True, slots=True)
class _Failed:
    """Why the process ends."""

    error: TuyiError


_Message: TypeAlias = _Told | _Listening | _Failed


class _Child:
    """One process; it ends when we do, however that is.

    Args:
        asked: What it is to serve.
        environment: Its environment.
    """

    def __init__(self, asked: Asked, environment: Mapping[str, str]) -> None:
        self.process, ours = start_program(__name__, environment=environment)
        self.connection = Connection(ours.detach())
        self.connection.send(asked)

    def how_it_ended(self) -> str:
        """Of a process that is gone."""
        code = self.process.wait()
        return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"


def serve_several(asked: Asked, tell: Callable[[str], None]) -> None:
    """Serve with as many processes as the settings say, until a SIGTERM or Ctrl-C comes and what runs is finished.

    Args:
        asked: What to serve; each process takes its share of the cores, and on a machine with GPUs one of these.
        tell: Called with lines that say what the first process chose, and where all of them listen.

    Raises:
        TuyiError: As :func:`tuyi.serve.run.serve` does in any of them; the others are ended.
        ConfigError: There cannot be so many, or not on this system.
        EngineError: One of them has ended.
    """
    count = asked.settings.processes
    gpus = _gpus(asked.settings)
    with _reserved(asked.settings) as port, TemporaryDirectory(prefix="tuyi-metrics-") as metrics:
        settings = asked.settings.model_copy(
            update={"port": port, "processes": 1, "page": False, "workers": max(2, asked.settings.workers // count)}
        )
        one = Asked(asked.model, asked.task, settings, asked.budget)
        children = [_Child(one, _environment(number, count, gpus, metrics)) for number in range(count)]
        try:
            stopping = threading.Event()

            def stop() -> None:
                stopping.set()
                _end(children)

            with told_to_end(stop):
                _attend(children, tell, stopping)
        finally:
            for child in children:
                child.process.kill()
                child.process.wait()


def _attend(children: Sequence[_Child], tell: Callable[[str], None], stopping: threading.Event) -> None:
    """Listen to processes until all have ended."""
    listening: set[_Child] = set()
    failed: TuyiError | None = None
    running = {child.connection: child for child in children}
    while running:
        for connection in wait(list(running)):
            assert isinstance(connection, Connection)
            child = running[connection]
            try:
                message: _Message = connection.recv()
            except (EOFError, OSError):
                del running[connection]
                if not stopping.is_set():
                    what = f"process {children.index(child) + 1} of {len(children)} has ended {child.how_it_ended()}"
                    failed = failed or EngineError(f"{what}; the others were ended, too")
                    stopping.set()
                    _end(children)
                continue
            if isinstance(message, _Failed):
                failed = failed or message.error
            elif isinstance(message, _Listening):
                listening.add(child)
                if len(listening) == len(children):
                    tell(f"{len(children)} × {message.line}")
            elif child is children[0]:
                tell(message.line)
    if failed is not None:
        raise failed


def _end(children: Sequence[_Child]) -> None:
    for child in children:
        if child.process.poll() is None:
            child.process.terminate()


def _gpus(settings: ServeSettings) -> Sequence[str]:
    """Names of the GPUs that processes take, as CUDA knows them; none where they run on the CPU."""
    if not sys.platform.startswith("linux"):
        raise ConfigError(f"serve.processes: several processes share a port on Linux alone, this is {sys.platform}")
    if settings.device == "cpu":
        return ()
    if settings.device is not None:
        raise ConfigError(
            f"serve.processes: each process takes a GPU of its own; leave serve.device={settings.device} out"
        )
    import torch

    found = torch.cuda.device_count()
    if found and settings.processes > found:
        raise ConfigError(f"serve.processes: expected at most {found}, one for each GPU; found {settings.processes}")
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return (named.split(",") if named else [str(number) for number in range(found)])[:found]


def _environment(number: int, count: int, gpus: Sequence[str], metrics: str) -> dict[str, str]:
    """Its GPU, its share of the cores, and where all of them count together."""
    given = {"OMP_NUM_THREADS": str(max(1, cpu_cores() // count)), **os.environ, "PROMETHEUS_MULTIPROC_DIR": metrics}
    return {**given, "CUDA_VISIBLE_DEVICES": gpus[number]} if gpus else given


@contextmanager
def _reserved(settings: ServeSettings) -> Iterator[int]:
    """The port, held for the processes; another server that is there already is found, although it shares, too."""
    with bound(settings) as alone:
        port: int = alone.getsockname()[1]
    with bound(settings.model_copy(update={"port": port}), is_shared=True):
        yield port


def main(fd: int) -> None:
    """A process of its own.

    Args:
        fd: Where to hear what is asked, and to tell what comes of it.
    """
    from tuyi.serve.run import serve_alone

    connection = Connection(fd)
    asked: Asked = connection.recv()
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    try:
        serve_alone(
            asked,
            tell=lambda line: connection.send(_Told(line)),
            listening=lambda line: connection.send(_Listening(line)),
            is_shared=True,
        )
    except TuyiError as error:
        connection.send(_Failed(error))


def _end_with(connection: Connection) -> None:
    """End when whoever started us is gone."""
    try:
        connection.recv()
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGTERM)
