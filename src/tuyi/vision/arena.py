"""Memory that this process shares with the workers of a picture pool, handed out as blocks, first in, first out."""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuyi.errors import ConfigError

__all__ = ["Arena", "Block"]

_LINE = 64
"""Blocks start at a cache line."""


class Block:
    """Part of an arena, filled piece by piece and given back as a whole; also a context manager that gives it back.

    Args:
        arena: Where it is given back.
        memory: uint8; its bytes.
        start: Where it stands in the arena, or None where it is ordinary memory of its own.
    """

    def __init__(self, arena: Arena, memory: NDArray[np.uint8], start: int | None) -> None:
        self.memory, self.start = memory, start
        self._arena, self._used, self._lock = arena, 0, threading.Lock()

    def take(self, size: int) -> tuple[NDArray[np.uint8], int | None]:
        """The next ``size`` bytes, and where they stand in the arena; for many threads at once.

        Raises:
            OverflowError: The block has fewer bytes left.
        """
        with self._lock:
            start, self._used = self._used, self._used + size
            if self._used > len(self.memory):
                self._used = start
                left = len(self.memory) - start
                raise OverflowError(f"expected at most {left:,} more bytes, as was counted before, found {size:,}")
        return self.memory[start : start + size], None if self.start is None else self.start + start

    def release(self) -> None:
        """Give the bytes back once nothing reads or writes them any more; safe to call twice."""
        self._arena._release(self)

    def __enter__(self) -> Block:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


class Arena:
    """Shared memory without a name, so that nothing is left behind however this process ends.

    Args:
        size: Bytes.
        pin: Page-lock it, so that the GPU copies from it while the CPU goes on.

    Attributes:
        fd: File descriptor for workers to inherit and map.

    Raises:
        ConfigError: The memory cannot be had, or not be pinned.
    """

    def __init__(self, size: int, *, pin: bool = False) -> None:
        self.size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self.fd, self.memory = _shared(self.size)
        self._blocks: deque[tuple[Block, int, int]] = deque()
        self._released: set[Block] = set()
        self._changed = threading.Condition()
        self._closed = self._pinned = False
        if pin:
            try:
                self._pin()
            except ConfigError:
                self.close()
                raise

    def block(self, size: int) -> Block:
        """``size`` bytes, after a wait until earlier blocks were given back; for one thread at a time.

        More than the whole arena becomes ordinary memory, which workers cannot write to themselves: right, but slower.

        Raises:
            RuntimeError: The arena was closed, before or during the wait.
        """
        if not 0 < size <= self.size:
            return Block(self, np.empty(size, np.uint8), None)
        with self._changed:
            while (start := self._room(size)) is None and not self._closed:
                self._changed.wait()
            if start is None or self._closed:
                raise RuntimeError("the picture pool is closed")
            block = Block(self, self.memory[start : start + size], start)
            self._blocks.append((block, start, -(-(start + size) // _LINE) * _LINE))
            return block

    def close(self) -> None:
        """Wake who waits for a block, and give the memory back once no array shows it any more; safe to call twice."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._blocks.clear()
            self._changed.notify_all()
        if self._pinned:
            import torch

            cudart: Any = torch.cuda.cudart()
            cudart.cudaHostUnregister(self.memory.ctypes.data)  # after an error on the GPU it fails too, and may
        os.close(self.fd)
        self.memory = np.empty(0, np.uint8)

    def __enter__(self) -> Arena:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _room(self, size: int) -> int | None:
        """Where a block of ``size`` bytes can start now."""
        if not self._blocks:
            return 0
        oldest, (_, newest, end) = self._blocks[0][1], self._blocks[-1]
        if newest < oldest:  # the ring has come round
            return end if end + size <= oldest else None
        if end + size <= self.size:
            return end
        return 0 if size <= oldest else None

    def _release(self, block: Block) -> None:
        with self._changed:
            if block.start is None or not any(block is known for known, _, _ in self._blocks):
                return
            self._released.add(block)
            while self._blocks and self._blocks[0][0] in self._released:
                self._released.remove(self._blocks.popleft()[0])
            self._changed.notify_all()

    def _pin(self) -> None:
        import torch

        try:
            cudart: Any = torch.cuda.cudart()
            refusal = cudart.cudaHostRegister(self.memory.ctypes.data, self.size, 0)
        except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
            raise ConfigError(f"pinned memory for pictures: expected a CUDA GPU, found none ({error})") from error
        if int(refusal):
            raise ConfigError(
                f"pinned memory for pictures: expected {self.size:,} bytes, CUDA refused "
                f"({cudart.cudaGetErrorString(refusal)}); allow more locked memory (ulimit -l) or use a smaller arena"
            )
        self._pinned = True


def _shared(size: int) -> tuple[int, NDArray[np.uint8]]:
    """An open file in memory that has no name, and its bytes.

    On a system without such files it lies, unlinked, in the folder of temporary files.
    """
    try:
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("tuyi-pictures")
        else:
            with tempfile.TemporaryFile() as file:
                fd = os.dup(file.fileno())
        try:
            os.ftruncate(fd, size)
            return fd, np.frombuffer(mmap.mmap(fd, size), np.uint8)
        except (OSError, OverflowError):
            os.close(fd)
            raise
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"shared memory for pictures: expected {size:,} bytes, the system refused ({error}); use a smaller arena"
        ) from error
