"""Videos of requests, decoded by processes of their own, which end where a hostile file has its way with a decoder."""

from __future__ import annotations

import json
import math
import os
import pickle
import select
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from tuyi.data.example import Video
from tuyi.errors import MediaError
from tuyi.serve.refusals import RefusalError
from tuyi.task.task import Budget
from tuyi.vision.spec import VideoPatches, VisionSpec
from tuyi.vision.video_file import VideoInfo
from tuyi.vision.video_process import VideoLimits

__all__ = ["VideoReaders"]

_POLL = 0.05
_CHUNK = 1 << 20


class VideoReaders:
    """Reads videos; for many threads, one process for each that reads at a time.

    Args:
        limits: What a video may have at most.
    """

    def __init__(self, limits: VideoLimits) -> None:
        self._limits = limits
        self._idle: list[_Reader] = []
        self._lock = threading.Lock()
        self._closed = False

    def look(self, video: Video, is_gone: Callable[[], bool]) -> VideoInfo:
        """What a video holds.

        Args:
            video: As bytes.
            is_gone: Whether nobody waits any more; asked all the time.

        Raises:
            MediaError: It is none that can be shown, or beyond its limits.
            RefusalError: Nobody waits any more.
        """
        told, _ = self._asked((video, self._limits), is_gone)
        return VideoInfo(**told)

    def cut(self, video: Video, spec: VisionSpec, budget: Budget, is_gone: Callable[[], bool]) -> VideoPatches:
        """A video as :func:`~tuyi.vision.video.video_patches` makes it; arguments and errors as there and above."""
        told, values = self._asked((video, self._limits, spec, budget), is_gone)
        shaped = np.frombuffer(values, np.uint8).reshape(told["shape"])
        t, h, w = told["grid"]
        return VideoPatches(shaped, (t, h, w), told["seconds_per_grid"], tuple(told["timestamps"]))

    def close(self) -> None:
        """End the processes that wait for more."""
        with self._lock:
            self._closed, idle, self._idle = True, self._idle, []
        for reader in idle:
            reader.end()

    def _free(self) -> _Reader | None:
        """A process that waits for more, those that have died meanwhile left out."""
        with self._lock:
            while self._idle:
                if (reader := self._idle.pop()).is_alive:
                    return reader
                reader.end()
        return None

    def _asked(self, what: tuple[Any, ...], is_gone: Callable[[], bool]) -> tuple[dict[str, Any], bytearray]:
        reader = self._free() or _Reader()
        is_well = False
        try:
            found = reader.ask(what, is_gone)
            is_well = True
        except (OSError, EOFError, ValueError) as error:
            told = f"video {what[0]}: cannot be decoded; re-encode it: ffmpeg -i IN -c:v libx264 OUT.mp4"
            raise MediaError(told) from error
        finally:
            with self._lock:
                is_kept = is_well and not self._closed
                if is_kept:
                    self._idle.append(reader)
            if not is_kept:
                reader.end()
        if error_told := found[0].get("error"):
            raise MediaError(error_told)
        return found


class _Reader:
    """A process of :mod:`tuyi.vision.video_process`."""

    def __init__(self) -> None:
        few = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}  # less address space
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tuyi.vision.video_process"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, **few},
            start_new_session=True,  # a Ctrl-C is the server's, which lets those who wait have their answers
        )  # fmt: skip
        to, out = self._process.stdin, self._process.stdout
        assert to is not None, "a pipe"
        assert out is not None, "a pipe"
        self._to, self._out = to, out
        os.set_blocking(self._to.fileno(), False)

    def ask(self, what: tuple[Any, ...], is_gone: Callable[[], bool]) -> tuple[dict[str, Any], bytearray]:
        """What it answers: its line, and the bytes behind it."""
        self._send(pickle.dumps(what), is_gone)
        values = bytearray()
        while (end := values.find(b"\n")) < 0:
            values += self._some(_CHUNK, is_gone)
        told = json.loads(values[:end])
        del values[: end + 1]
        size = math.prod(told.get("shape", (0,)))
        while len(values) < size:
            values += self._some(min(_CHUNK, size - len(values)), is_gone)
        return told, values

    @property
    def is_alive(self) -> bool:
        """Whether it is there."""
        return self._process.poll() is None

    def end(self) -> None:
        """Kill it, whatever it is at."""
        self._process.kill()
        self._process.wait()
        with suppress(OSError):
            self._to.close()
        self._out.close()

    def _send(self, data: bytes, is_gone: Callable[[], bool]) -> None:
        left = memoryview(data)
        while left:
            _, ready, _ = select.select((), (self._to,), (), _POLL)
            _check(is_gone)
            if ready:
                left = left[os.write(self._to.fileno(), left) :]

    def _some(self, most: int, is_gone: Callable[[], bool]) -> bytes:
        while not select.select((self._out,), (), (), _POLL)[0]:
            _check(is_gone)
        if not (found := os.read(self._out.fileno(), most)):
            raise EOFError
        return found


def _check(is_gone: Callable[[], bool]) -> None:
    if is_gone():
        raise RefusalError(499, "nobody waits for the answer any more")
