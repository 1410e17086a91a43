"""Steps of one token a row, recorded once for each number of rows and played again.

A layer's step is some thirty kernels of a few microseconds each, and launching them takes the host several times as
long as running them takes a GPU. A recorded step (a CUDA graph) is launched as one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tuyi.model.cache import Cached, Continuing, KeyValueCache
from tuyi.model.forward import Batch, on_device
from tuyi.model.kernels import varlen_available
from tuyi.model.load import Model
from tuyi.model.segments import Segments

__all__ = ["Record", "Steps", "record_on_gpu"]

_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Numbers of rows for which steps are recorded; the next larger one serves others, its further rows thrown away."""
_SHORTEST = 512
"""Keys of a row that a record is made for at least."""
_WORTH = 2
"""Steps of a kind after which one is recorded, which takes about as long as two."""

Again: TypeAlias = Callable[[], Tensor]
Record: TypeAlias = Callable[[Again], Again]
"""Takes work that reads fixed places and gives what does it again, with a result in a fixed place."""


def record_on_gpu() -> Record:
    """Records into CUDA graphs, all of which share the memory that they work in: only one plays at a time."""
    stream, pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def record(work: Again) -> Again:
        work()  # whatever is compiled or chosen at a first run
        graph = torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # other threads may go on using the GPU meanwhile
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                result = work()
            finally:
                graph.capture_end()

        def again() -> Tensor:
            graph.replay()
            return result

        return again

    return record


@dataclass(frozen=True, eq=False, slots=True)
class _Step:
    """A recorded step.

    Args:
        numbers: int64, shape (6, rows): what it reads.
        layout: How its rows lie; dense attention looks here for where.
        work: What was recorded, which holds all that it reads.
        again: Plays it.
    """

    numbers: Tensor
    layout: Continuing
    work: Again
    again: Again


class Steps:
    """The recorded steps of a decoder.

    Args:
        model: The model.
        cache: Its rows; steps stay valid as long as it does.
        record: How steps are recorded; CUDA graphs, where attention has kernels, if not given.
    """

    def __init__(self, model: Model, cache: KeyValueCache, record: Record | None = None) -> None:
        self._model, self._cache, self._record = model, cache, record
        self._seen: Counter[tuple[int, int]] = Counter()
        self._steps: dict[tuple[int, int], _Step] = {}

    def run(self, numbers: NDArray[np.int64]) -> Tensor | None:
        """Let a token of each row pass the model.

        Args:
            numbers: Shape (6, rows): of each row the token, its place among the row's tokens, its M-RoPE position, its
                slot, where the row begins in the cache, and its tokens with this one.

        Returns:
            Hidden states as they enter the head, (rows, D), valid until the next step; None, and nothing done, where
            the step is not recorded.
        """
        rows = numbers.shape[1]
        if self._record is None:
            if not varlen_available(self._model.device, self._model.hf.dtype):
                return None
            self._record = record_on_gpu()
        size = next((size for size in _SIZES if size >= rows), None)
        if size is None:
            return None
        longest = max(_SHORTEST, 1 << int(numbers[5].max() - 1).bit_length())
        key = (size, longest)
        self._seen[key] += 1
        if key not in self._steps and self._seen[key] <= _WORTH:
            return None
        unused = np.asarray([0, 0, 0, self._cache.tokens, self._cache.tokens, 1])  # sees the token behind all rooms
        filled = np.concatenate([numbers, np.tile(unused[:, None], size - rows)], axis=1)
        step = self._steps.get(key)
        if step is None:
            step = self._steps[key] = self._recorded(filled, longest, self._record)
        else:
            _fill(step.numbers, step.layout, filled)
        return step.again()[:rows]

    def _recorded(self, filled: NDArray[np.int64], longest: int, record: Record) -> _Step:
        device, size = self._model.device, filled.shape[1]
        numbers = torch.empty(filled.shape, dtype=torch.int64, device=device)
        cu_q = torch.arange(size + 1, dtype=torch.int32, device=device)
        none = torch.empty(0, dtype=torch.int64, device=device)
        begins, used = (torch.empty(many, dtype=torch.int32, device=device) for many in (size + 1, size))
        news = Segments(cu_q, begins, 1, longest, False)
        layout = Continuing(self._cache, (), numbers[3], news, used, None, None, None)

        def work() -> Tensor:
            ids, within, places = numbers[:3]
            begins.copy_(F.pad(numbers[4], (0, 1)))
            used.copy_(numbers[5])
            positions = torch.stack([within, places, places, places])[:, None]
            batch = Batch(ids, positions, layout, None, none, none, none)
            hidden_RD: Tensor = self._model.hf(batch=batch, head=False)
            return hidden_RD

        _fill(numbers, layout, filled)
        return _Step(numbers, layout, work, record(work))


def _fill(numbers: Tensor, layout: Continuing, filled: NDArray[np.int64]) -> None:
    numbers.copy_(on_device(filled, numbers.device))
    layout.rows = tuple(Cached(begin, length, 1) for begin, length in filled[4:].T.tolist())
