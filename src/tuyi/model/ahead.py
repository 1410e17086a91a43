"""Packs made ahead of a model: rows encoded by threads, laid out and copied to the device by one more."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, TypeVar

import torch

from tuyi.encode.encoded import Encoded
from tuyi.encode.encoder import Look
from tuyi.errors import DataError
from tuyi.model.forward import Batch
from tuyi.vision.pool import PicturePool

__all__ = ["Ahead", "Coming", "Copies", "Made"]


class Made(Protocol):
    """What is made of a pack's rows: at least their batch."""

    @property
    def batch(self) -> Batch: ...


T = TypeVar("T", bound=Made)
B = TypeVar("B")


@dataclass(frozen=True, eq=False, slots=True)
class Coming(Generic[T]):
    """A pack that is being made, and its rows; the pack is None where no row of it can be used."""

    pack: Future[T | None]
    rows: Sequence[Future[Encoded]]


class Copies:
    """Copies to a device while it works on something else.

    Args:
        device: Which.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def made(self, make: Callable[[], B], batch_of: Callable[[B], Batch]) -> B:
        """What ``make`` makes of tensors of this machine, under a stream of its own; its batch is on the device then.

        Args:
            make: Copies a batch to the device.
            batch_of: The batch of what it makes.
        """
        if self._stream is None:
            return make()
        with torch.cuda.stream(self._stream):
            made = make()
        self._stream.synchronize()  # waits in this thread alone; then the host's memory is free again
        runs_on = torch.cuda.default_stream(self._device)
        for tensor in batch_of(made).tensors():
            tensor.record_stream(runs_on)
        return made


class Ahead:
    """Makes packs while the model works on earlier ones.

    Args:
        device: Where packs go.
        workers: Rows that are encoded at a time.
        pool: Processes that decode pictures; threads of this process where None. It stays its owner's.
        on_bad_row: Called with what is wrong with a row that cannot be read after all; such a row stops everything
            where not given.
    """

    def __init__(
        self, device: torch.device, *, workers: int, pool: PicturePool | None = None,
        on_bad_row: Callable[[DataError], None] | None = None,
    ) -> None:  # fmt: skip
        self.device, self.workers = device, workers
        self._pool, self._on_bad_row = pool, on_bad_row
        self._copies = Copies(device)
        self._rows = ThreadPoolExecutor(workers, "rows")
        self._packs = ThreadPoolExecutor(1, "packs")

    def start(
        self, rows: Sequence[Callable[[Look | None], Encoded]], pixel_bytes: int, make: Callable[[list[Encoded]], T]
    ) -> Coming[T]:
        """Begin a pack; packs are made in the order in which they are begun.

        Args:
            rows: Encode one row each, given who cuts its pictures: None for the thread itself.
            pixel_bytes: Most bytes of the patches of all their pictures together.
            make: Lays the encoded rows out and copies them to the device; on a GPU under a stream of its own.
        """
        block = look = None
        if self._pool is not None and pixel_bytes:
            block = self._pool.block(pixel_bytes)
            look = partial(self._pool.patches, into=block)
        encoded = [self._rows.submit(row, look) for row in rows]
        packed = self._packs.submit(self._made, encoded, make)
        if block is not None:
            packed.add_done_callback(lambda _: block.release())
        return Coming(packed, encoded)

    def stop(self, packs: Collection[Coming[T]]) -> None:
        """Begin nothing more of these; their memory is given back once the rows that were begun are over."""
        for row in (row for one in packs for row in one.rows):
            row.cancel()
        for one in packs:
            _over(one.rows)
            one.pack.cancel()

    def close(self) -> None:
        """End the threads."""
        self._rows.shutdown(wait=True, cancel_futures=True)
        self._packs.shutdown(wait=True, cancel_futures=True)

    def _made(self, coming: Sequence[Future[Encoded]], make: Callable[[list[Encoded]], T]) -> T | None:
        _over(coming)  # whatever becomes of the pack, nobody writes into its memory any more
        encoded = [row for row in map(self._result, coming) if row is not None]
        if not encoded:
            return None
        return self._copies.made(lambda: make(encoded), lambda made: made.batch)

    def _result(self, row: Future[Encoded]) -> Encoded | None:
        try:
            return row.result()
        except DataError as error:
            if self._on_bad_row is None:
                raise
            self._on_bad_row(error)
            return None


def _over(rows: Sequence[Future[Encoded]]) -> None:
    """Wait until each is done or cancelled."""
    for row in rows:
        with suppress(CancelledError):
            row.exception()
