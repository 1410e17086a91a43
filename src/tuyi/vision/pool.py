"""Processes that decode, resize and cut pictures, ahead of the model and off its threads."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import TYPE_CHECKING

from tuyi.errors import MediaError
from tuyi.vision.arena import Arena, Block
from tuyi.vision.spec import ImagePatches, VisionSpec
from tuyi.vision.worker import Order

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tuyi.data.example import Image
    from tuyi.vision.augment import Augment

__all__ = ["PicturePool"]

_CODE = "from tuyi.vision.worker import main; main()"
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # glibc: keep the memory of one picture for the next; to get it anew, zeroed, took a third of a worker's time
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(128 << 20),
}


class PicturePool:
    """Processes that decode, resize and cut pictures into patches, into memory shared with this process.

    One thread asks for a block that holds what belongs together, in order; any threads then have pictures cut into it;
    it is released when its bytes were copied on. A context manager. POSIX only.

    Args:
        workers: Processes; each needs about 40 MiB and half a second to start.
        arena_bytes: Shared memory for all blocks that are in use at a time.
        pin: Page-lock that memory, so that the GPU copies from it while the CPU goes on.
        draft: As for :func:`~tuyi.vision.patches.image_patches`.

    Raises:
        ConfigError: The memory cannot be had, or not be pinned.
    """

    def __init__(self, workers: int, arena_bytes: int = 1 << 30, *, pin: bool = False, draft: bool = False) -> None:
        assert workers > 0
        self._draft = draft
        self._closed = False
        self._arena = Arena(arena_bytes, pin=pin)
        self._workers = [_Worker(self._arena.fd) for _ in range(workers)]
        self._free: SimpleQueue[_Worker | None] = SimpleQueue()
        for worker in self._workers:
            worker.start()
            self._free.put(worker)

    @property
    def pids(self) -> list[int]:
        """Numbers of the worker processes that run now."""
        return [worker.pid for worker in self._workers if worker.pid is not None]

    def block(self, size: int) -> Block:
        """``size`` bytes of the shared memory, after a wait until earlier blocks were released; for one thread.

        A block larger than all of it is ordinary memory: right, but slower.

        Raises:
            RuntimeError: The pool was closed, before or during the wait.
        """
        return self._arena.block(size)

    def patches(
        self,
        image: Image,
        spec: VisionSpec,
        min_pixels: int,
        max_pixels: int,
        into: Block,
        *,
        augment: Augment | None = None,
        seed: int = 0,
    ) -> ImagePatches:
        """As :func:`~tuyi.vision.patches.image_patches`, by a free worker; for as many threads as there are workers.

        A worker that dies is replaced and the picture tried once more.

        Args:
            image: Reference to the picture.
            spec: The model's vision tower.
            min_pixels, max_pixels: Smallest and largest area of the resized picture.
            into: Block whose next bytes are taken; the values are a view on them.
            augment, seed: As for :func:`~tuyi.vision.patches.image_patches`.

        Raises:
            MediaError: The picture cannot be used, the block has no room for it, or two workers died of it.
            RuntimeError: The pool was closed, before or meanwhile.
        """
        change = None if augment is None else augment.draw(seed)
        order = Order(image.source, str(image), spec, min_pixels, max_pixels, self._draft, change)
        worker = self._free.get()
        if worker is None:
            self._free.put(None)  # for the next thread
            raise RuntimeError("the picture pool is closed")
        try:
            return self._ordered(worker, order, into)
        finally:
            if worker.busy:
                worker.stop()
            self._free.put(worker)

    def close(self) -> None:
        """End the workers and give the memory back, whatever they are at; safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._free.put(None)
        for worker in self._workers:
            worker.end()
        self._arena.close()

    def __enter__(self) -> PicturePool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _ordered(self, worker: _Worker, order: Order, into: Block) -> ImagePatches:
        taken: tuple[NDArray[np.uint8], int | None] | None = None
        for _ in range(2):
            try:
                grid = worker.ask(order)
                taken = taken or into.take(3 * order.spec.patch_size**2 * grid[1] * grid[2])
                worker.cut(*taken)
                return ImagePatches(taken[0].reshape(grid[1] * grid[2], -1), grid)
            except (EOFError, OSError):
                if self._closed:
                    raise RuntimeError("the picture pool is closed") from None
                worker.stop(patience=1.0)
            except OverflowError as error:
                raise MediaError(f"picture {order}: {error}; did the file change meanwhile? Start again") from error
        raise MediaError(
            f"picture {order}: expected patches, found that the process which decodes it ended twice "
            f"({worker.ending}); is memory short, or the picture one that crashes a decoder?"
        )


class _Worker:
    """One process and the connection to it, for one thread at a time but for :meth:`end`.

    Attributes:
        busy: Whether it owes an answer, so that it cannot be asked for another picture.
        ending: How its last process ended.
    """

    def __init__(self, memory_fd: int) -> None:
        self.busy = False
        self.ending = ""
        self._memory_fd = memory_fd
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._lock = threading.Lock()
        self._ended = False

    @property
    def pid(self) -> int | None:
        """Number of the process, where there is one."""
        process = self._process
        return None if process is None else process.pid

    def start(self) -> Connection:
        """The connection to the process, started where there is none."""
        with self._lock:
            if self._ended:
                raise EOFError
            if self._connection is None:
                ours, theirs = socket.socketpair()
                with theirs:
                    self._process = _process(theirs.fileno(), self._memory_fd)
                self._connection = Connection(ours.detach())
            return self._connection

    def ask(self, order: Order) -> tuple[int, int, int]:
        """The grid of a picture that now waits to be cut."""
        connection = self.start()
        self.busy = True
        connection.send(order)
        answer: tuple[int, int, int] | str = connection.recv()
        if isinstance(answer, str):
            self.busy = False
            raise MediaError(answer)
        return answer

    def cut(self, out: NDArray[np.uint8], offset: int | None) -> None:
        """Cut the picture that waits, into the arena at an offset or, without one, into any memory."""
        assert self._connection is not None
        self._connection.send(offset)
        if offset is None:
            self._connection.recv_bytes_into(out)
        else:
            self._connection.recv()
        self.busy = False

    def stop(self, patience: float = 0.0) -> None:
        """End the process, after seconds of patience where it seems to end by itself; the next picture starts one."""
        with self._lock:
            if self._process is not None and self._connection is not None:
                self._connection.close()
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(patience)
                self._process.kill()
                code = self._process.wait()
                self.ending = f"signal {-code}" if code < 0 else f"exit code {code}"
            self._process = self._connection = None
            self.busy = False

    def end(self) -> None:
        """End the process for good, also while another thread waits for its answer."""
        with self._lock:
            self._ended = True
            if self._process is not None:
                self._process.kill()
                self._process.wait()


def _process(connection_fd: int, memory_fd: int) -> subprocess.Popen[bytes]:
    """A plain new process: the caller's script is not imported, and nothing of a GPU that it uses is inherited."""
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _CODE, str(connection_fd), str(memory_fd)],
        pass_fds=(connection_fd, memory_fd),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": paths, **_ENVIRONMENT},
        process_group=0,  # out of the reach of Ctrl-C from its first moment on
    )
