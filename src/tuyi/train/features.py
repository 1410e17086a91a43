"""Features of a frozen vision tower, kept from the first pass over a row on, so that later epochs need no pixels.

Pictures of a row are known by the row's number and their place in it: nothing has to be read to find their features.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from tuyi.errors import TrainingError, first_line

__all__ = ["Features", "Fetched", "OnDevice", "OnHost", "disk_slabs", "memory_slabs"]

_SLAB = 256 << 20
"""Bytes that are allocated together; a power of two, which page-locked memory is rounded up to."""


class Features(Protocol):
    """Where features are kept; made known by the thread that lays packs out, filled by the one that runs them."""

    def admit(self, key: bytes, count: int) -> bool:
        """Whether the features of this picture, so many, have a place; those that once had one always have."""

    def __contains__(self, key: object) -> bool: ...

    def fetch(self, keys: Iterable[bytes]) -> Fetched:
        """Bring features to the device, on its current stream, for a pack that runs after those that make them."""

    def keep(self, key: bytes | None, levels: Sequence[Tensor]) -> None:
        """Keep features that were just made, on the current stream; None and keys without a place are passed over."""

    def get(self, key: bytes) -> Sequence[Tensor]:
        """Features that lie on the device, at the moment when a pack runs."""

    def close(self) -> None:
        """Give all memory back."""


class Fetched:
    """The features of one pack: those that are there, and where new ones go."""

    def __init__(self, features: Features, ready: dict[bytes, Sequence[Tensor]]) -> None:
        self._features, self._ready = features, ready

    def __getitem__(self, key: bytes) -> Sequence[Tensor]:
        return self._ready.get(key) or self._features.get(key)

    def keep(self, key: bytes | None, levels: Sequence[Tensor]) -> None:
        self._features.keep(key, levels)


class _Room:
    """Which pictures have a place."""

    def __init__(self, most: int) -> None:
        self._left = most
        self._keys: set[bytes] = set()

    def admit(self, key: bytes, count: int) -> bool:
        if key not in self._keys and count <= self._left:
            self._left -= count
            self._keys.add(key)
        return key in self._keys

    def __contains__(self, key: object) -> bool:
        return key in self._keys


class OnDevice(_Room):
    """Features that stay where they were made.

    Args:
        most: Visual tokens that may be kept.
    """

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self._levels: dict[bytes, Sequence[Tensor]] = {}

    def fetch(self, keys: Iterable[bytes]) -> Fetched:
        return Fetched(self, {})

    def keep(self, key: bytes | None, levels: Sequence[Tensor]) -> None:
        if key in self and key not in self._levels:
            assert key is not None
            self._levels[key] = [level.detach().clone() for level in levels]

    def get(self, key: bytes) -> Sequence[Tensor]:
        return self._levels[key]

    def close(self) -> None:
        self._levels.clear()


Slabs = Callable[[int], Tensor]
"""Makes an uninitialised uint8 tensor of so many bytes in host memory."""


def memory_slabs(size: int) -> Tensor:
    """Page-locked memory, from which a GPU copies by itself."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)


def disk_slabs(folder: Path) -> Slabs:
    """Files of a folder that is made here, mapped into memory."""
    folder.mkdir(parents=True)

    def make(size: int) -> Tensor:
        name = folder / f"{len(list(folder.iterdir()))}.bin"
        return torch.from_file(str(name), shared=True, size=size, dtype=torch.uint8)

    return make


class OnHost(_Room):
    """Features in host memory or on disk; copied there and back while the model works.

    Args:
        most: Visual tokens that may be kept.
        device: The GPU that they come from and go to.
        slabs: Makes memory to keep them in.
        folder: Removed at the end, if it lies there.
    """

    def __init__(self, most: int, device: torch.device, slabs: Slabs, folder: Path | None = None) -> None:
        super().__init__(most)
        self._device, self._slabs, self._folder = device, slabs, folder
        self._slab: Tensor | None = None
        self._used = 0
        self._places: dict[bytes, Tensor] = {}
        self._asked: set[bytes] = set()
        self._changed = threading.Condition()
        self._ended: Exception | None = None
        self._stream = torch.cuda.Stream(device)
        self._writer = ThreadPoolExecutor(1, "features")

    def keep(self, key: bytes | None, levels: Sequence[Tensor]) -> None:
        if key is None or key not in self or key in self._asked:
            return
        self._asked.add(key)
        made = torch.cuda.Event()
        made.record()
        self._writer.submit(self._write, key, [level.detach() for level in levels], made)

    def fetch(self, keys: Iterable[bytes]) -> Fetched:
        ready: dict[bytes, Sequence[Tensor]] = {}
        for key in keys:
            with self._changed:
                self._changed.wait_for(lambda key=key: key in self._places or self._ended is not None)  # type: ignore[misc]
                if self._ended is not None:
                    raise self._ended
                place = self._places[key]
            there = place.to(self._device, non_blocking=True)
            there.record_stream(torch.cuda.default_stream(self._device))
            ready[key] = tuple(there.unbind())
        return Fetched(self, ready)

    def get(self, key: bytes) -> Sequence[Tensor]:
        raise AssertionError("features in host memory are fetched before a pack runs")

    def close(self) -> None:
        self._end(RuntimeError("the features are closed"))
        self._writer.shutdown(wait=True, cancel_futures=True)
        self._places.clear()
        self._slab = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _write(self, key: bytes, levels: Sequence[Tensor], made: torch.cuda.Event) -> None:
        try:
            with torch.cuda.stream(self._stream):
                self._stream.wait_event(made)
                place = self._place(levels)
                for part, level in zip(place, levels):
                    part.copy_(level, non_blocking=True)
                self._stream.synchronize()
        except (RuntimeError, OSError) as error:
            why = f"no memory to keep visual features in ({first_line(error)}); set train.keep_features=none"
            self._end(TrainingError(why))
            return
        with self._changed:
            self._places[key] = place
            self._changed.notify_all()

    def _place(self, levels: Sequence[Tensor]) -> Tensor:
        """Memory for (levels, features, width)."""
        first = levels[0]
        size = len(levels) * first.numel() * first.element_size()
        if self._slab is None or self._used + size > len(self._slab):
            self._slab, self._used = self._slabs(max(_SLAB, size)), 0
        begin, self._used = self._used, -(-(self._used + size) // 64) * 64
        return self._slab[begin : begin + size].view(first.dtype).view(len(levels), *first.shape)

    def _end(self, why: Exception) -> None:
        with self._changed:
            self._ended = self._ended or why
            self._changed.notify_all()
