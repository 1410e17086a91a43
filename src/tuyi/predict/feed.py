"""The way to the model: rows are encoded, packed and copied to its device while it works on earlier ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch

from tuyi.data.example import Example
from tuyi.encode.encoded import Encoded
from tuyi.encode.encoder import Encoder, LabelTokens
from tuyi.encode.pack import Pack, group, pack
from tuyi.errors import DataError
from tuyi.model.forward import Batch, to_device
from tuyi.model.kept import Plan
from tuyi.predict.engine import SizedRow, closed_labels
from tuyi.task.task import Task
from tuyi.vision.pool import PicturePool

__all__ = ["Feed", "Ready"]


@dataclass(frozen=True, eq=False, slots=True)
class Ready:
    """A pack whose tensors lie on the device.

    Args:
        encoded: Its rows.
        labels: The labels of each row's task.
        pack: Them laid out.
        batch: The pack on the device.
        keys: Of the visual features that are to be kept once it is through.
    """

    encoded: Sequence[Encoded]
    labels: Sequence[LabelTokens]
    pack: Pack
    batch: Batch
    keys: frozenset[bytes]


@dataclass(frozen=True, eq=False, slots=True)
class _Coming:
    """A pack that is being made, and its rows."""

    pack: Future[Ready | None]
    rows: Sequence[Future[Encoded]]


def _stop(packs: Collection[_Coming]) -> None:
    """Begin nothing more of them; their memory is given back once the rows that were begun are over."""
    for row in (row for one in packs for row in one.rows):
        row.cancel()
    for one in packs:
        _over(one.rows)
        one.pack.cancel()


def _over(rows: Sequence[Future[Encoded]]) -> None:
    """Wait until each is done or cancelled."""
    for row in rows:
        with suppress(CancelledError):
            row.exception()


class Feed:
    """Encodes rows ahead of a model.

    Args:
        encoder: Of the model, with its tasks.
        device: Where packs go.
        pack_tokens: Most tokens of one pack, label branches included.
        workers: Pictures that are decoded at a time.
        window: Rows sorted by length together; also the most that wait for each other.
        pool: Processes that decode; threads of this process where None.
        features: Visual tokens whose features are kept for pictures that come again.
        on_bad_row: Called with what is wrong with a row that cannot be read after all; such a row stops everything
            where not given.
    """

    def __init__(
        self, encoder: Encoder, device: torch.device, *, pack_tokens: int, workers: int, window: int,
        pool: PicturePool | None = None, features: int = 0, on_bad_row: Callable[[DataError], None] | None = None,
    ) -> None:  # fmt: skip
        self._on_bad_row = on_bad_row
        self._encoder, self._device, self._pool = encoder, device, pool
        self._pack_tokens, self._workers, self._window = pack_tokens, workers, window
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._plan = Plan(features)
        self._rows = ThreadPoolExecutor(workers, "rows")
        self._packs = ThreadPoolExecutor(1, "packs")

    def packs(self, rows: Iterable[SizedRow]) -> Generator[Ready, None, None]:
        """Packs in the order in which they are to run: longest rows first in each window.

        Raises:
            ModelError: A row's task needs free text, which is not scored.
            DataError: A picture that cannot be read after all.
        """
        self._plan.clear()
        coming: deque[_Coming] = deque()
        try:
            for examples, tokens in self._grouped(rows):
                coming.append(self._start(examples, tokens))
                # ahead lie rows for every worker, and at least the pack after the one that runs
                while len(coming) > 2 and sum(len(one.rows) for one in coming) > 3 * self._workers:
                    if (ready := coming.popleft().pack.result()) is not None:
                        yield ready
            while coming:
                if (ready := coming.popleft().pack.result()) is not None:
                    yield ready
        finally:
            _stop(coming)

    def close(self) -> None:
        """End the threads; the pool is its owner's."""
        self._rows.shutdown(wait=True, cancel_futures=True)
        self._packs.shutdown(wait=True, cancel_futures=True)

    def _grouped(self, rows: Iterable[SizedRow]) -> Iterator[tuple[list[Example], int]]:
        """Rows that pass the model together, and their tokens without branches."""
        rows = iter(rows)
        tasks = self._encoder.tasks
        while window := list(islice(rows, self._window)):
            # rows of a task side by side share the beginning of their prompts, rows with the same picture its features
            asked = [(tasks.of(row), row, size) for row, size in window]
            asked.sort(key=lambda one: (one[0].name, -one[2], _picture_bytes(one[1])))
            sized = (((row, size), size + self._branch_tokens(task)) for task, row, size in asked)
            for together in group(sized, self._pack_tokens):
                yield [row for row, _ in together], sum(tokens for _, tokens in together)

    def _branch_tokens(self, task: Task) -> int:
        closed_labels(task)
        return sum(self._encoder.labels(task).branch_lengths)

    def _start(self, examples: list[Example], tokens: int) -> _Coming:
        spec = self._encoder.spec
        block, look = None, None
        if self._pool is not None:
            # patches of one frame; a video's are not cut by the pool
            block = self._pool.block(tokens * spec.merge_size**2 * 3 * spec.patch_size**2)
            look = partial(self._pool.patches, into=block)
        encoded = [self._rows.submit(self._encoder.encode, row, labelled=False, look=look) for row in examples]
        packed = self._packs.submit(self._assemble, encoded)
        if block is not None:
            packed.add_done_callback(lambda _: block.release())
        return _Coming(packed, encoded)

    def _assemble(self, coming: Sequence[Future[Encoded]]) -> Ready | None:
        _over(coming)  # whatever becomes of the pack, nobody writes into its memory any more
        encoded = [row for row in map(self._result, coming) if row is not None]
        return self._ready(encoded) if encoded else None

    def _result(self, row: Future[Encoded]) -> Encoded | None:
        try:
            return row.result()
        except DataError as error:
            if self._on_bad_row is None:
                raise
            self._on_bad_row(error)
            return None

    def _ready(self, encoded: list[Encoded]) -> Ready:
        labels = [self._encoder.labels(self._encoder.tasks[row.task]) for row in encoded]
        packed = pack(encoded, labels, self._plan)
        visuals = [visual for visual in (packed.images, packed.videos) if visual is not None]
        self._plan.use([used for visual in visuals for used in visual.uses()])
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            batch = to_device(packed, self._encoder.spec, self._device)
        if self._stream is not None:
            self._stream.synchronize()  # waits in this thread alone; then the host's memory is free again
            runs_on = torch.cuda.default_stream(self._device)
            for tensor in batch.tensors():
                tensor.record_stream(runs_on)
        return Ready(encoded, labels, packed, batch, frozenset(self._plan))


def _picture_bytes(row: Example) -> tuple[int, ...]:
    """Sizes of a row's picture files; equal for equal pictures. A missing file is found out by whoever reads it."""
    sources = [image.source for image in row.images]
    return tuple(len(one) if isinstance(one, bytes) else _size(one) for one in sources)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return -1
