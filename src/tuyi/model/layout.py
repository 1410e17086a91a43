"""How the tokens of a pack lie, and so who sees whom."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tuyi.encode.pack import Branches
from tuyi.model.dense import dense_layout
from tuyi.model.kernels import varlen_available
from tuyi.model.packed import packed_layout
from tuyi.model.segments import Segments

__all__ = ["Attends", "Layout"]


class Attends(Protocol):
    """How the language model's tokens of one pass see each other, and what else they see."""

    def attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        """One layer's attention: q (T, H, D), k and v (T, H or fewer, D), with rotary positions → (T, H, D)."""
        ...

    def asking(self, x: Tensor) -> Tensor:
        """Of (1, T, …) the tokens that ask in the last layer, whose keys and values are still those of all tokens."""
        ...

    def leaving(self, x: Tensor) -> Tensor:
        """Of these, (1, Q, …), the ones whose hidden states leave the model, (1, K, …)."""
        ...

    def tensors(self) -> Iterator[Tensor]:
        """All that lies on the device."""
        ...


@dataclass(eq=False, slots=True)
class Ends:
    """The tokens that ask in the last layer: the last ones of each row, and all branches.

    Args:
        tails: Tokens at the end of each row, from the first whose hidden state is read.
        segments: Tails and branches, each seeing its own keys, those of the prefix's own segment left out; for kernels.
        at: (Q,): the same as numbers of tokens.
        read: (K,): which of them are read.
    """

    tails: tuple[int, ...]
    segments: Segments
    at: Tensor
    read: Tensor

    @classmethod
    def of(
        cls, lengths: Sequence[int], shared: int, leaves: Sequence[int], keep: NDArray[np.int64], device: torch.device
    ) -> Ends:
        """Of rows of these lengths behind a shared prefix, with branches of these behind them.

        Args:
            lengths, shared, leaves: Tokens of each row's own part, of the prefix, of each branch.
            keep: (K,): the tokens whose hidden states are read, ascending.
            device: Where to.
        """
        ends = shared + np.cumsum(lengths)
        first = np.append(keep, ends[-1])[np.searchsorted(keep, ends - lengths)]
        tails = np.maximum(ends - first, 1)  # kernels want a query in each segment
        parts = [np.arange(end - tail, end) for end, tail in zip(ends, tails)]
        at = np.concatenate([*parts, np.arange(ends[-1], ends[-1] + sum(leaves))])
        queries, keys = [*tails.tolist(), *leaves], [*(shared + length for length in lengths), *leaves]
        # 2 at least: fa2 takes segments of at most one query each to have exactly one
        cu_q, cu_k = _cumulative(queries).to(device), _cumulative(keys).to(device)
        segments = Segments(cu_q, cu_k, max(2, *queries), max(keys), True)
        read = np.searchsorted(at, keep)
        return cls(tuple(tails.tolist()), segments, *(torch.from_numpy(x).to(device) for x in (at, read)))


@dataclass(eq=False, slots=True)
class Layout:
    """How the tokens of a pack lie: the shared prefix, each row's own tokens, then all label branches.

    Not frozen: a compiled block would look into a frozen one and be compiled anew for each number of rows.

    Args:
        shared: Tokens of the prefix that all rows see; 0 for none.
        lengths: Tokens of each row's own part.
        branches: The branches of each row.
        segments: Prefix, rows and branches, each seeing its own keys; for kernels.
        keys: (K,): for kernels, the token of each key where rows share a prefix (it stands before each row); None
            where keys are the tokens themselves.
        prompts: Each row's branch tokens, seeing the row's whole prompt; for kernels; None without branches.
        prompt_keys: The keys of all prompts, which these segments count from; kernels leave the gradients of keys that
            no segment has as they find them.
        masks: Cache of the dense form.
        ends: The tokens that ask in the last layer; None where all do and are read.
    """

    shared: int
    lengths: tuple[int, ...]
    branches: Branches | None
    segments: Segments
    keys: Tensor | None
    prompts: Segments | None
    prompt_keys: slice
    masks: dict[tuple[Any, ...], Tensor]
    ends: Ends | None

    @classmethod
    def of(
        cls, lengths: Sequence[int], device: torch.device, branches: Branches | None = None, shared: int = 0,
        keep: NDArray[np.int64] | None = None,
    ) -> Layout:  # fmt: skip
        """The layout of rows of the given lengths, its small tensors on ``device``.

        Args:
            lengths: Tokens of each row's own part.
            device: Where to.
            branches: The branches of each row.
            shared: Tokens of the prefix that all rows see.
            keep: (K,): the tokens whose hidden states are read, ascending; all where not given.
        """
        first = [shared] if shared else []
        leaves = [length for row in branches.lengths for length in row if length] if branches else []
        queries = [*first, *lengths, *leaves]
        seen = [*first, *(shared + length for length in lengths), *leaves]
        cu_q, cu_k = _cumulative(queries), _cumulative(seen)
        segments = Segments(cu_q.to(device), cu_k.to(device), max(queries), max(seen), True)
        keys = _keys(shared, lengths, sum(leaves)).to(device) if shared else None
        rows = cu_k[len(first) : len(first) + len(lengths) + 1]
        prompts = None
        if branches is not None:
            row_cu, own_cu = _cumulative(branches.row_lengths).to(device), (rows - rows[0]).to(device)
            prompts = Segments(row_cu, own_cu, max(branches.row_lengths), shared + max(lengths), False)
        prompt_keys = slice(int(rows[0]), int(rows[-1]))
        ends = None if keep is None else Ends.of(lengths, shared, leaves, keep, device)
        return cls(shared, tuple(lengths), branches, segments, keys, prompts, prompt_keys, {}, ends)

    @property
    def roots(self) -> int:
        """Tokens before the branches."""
        return self.shared + sum(self.lengths)

    def attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        """As :class:`Attends` says."""
        if not varlen_available(q.device, q.dtype):
            return dense_layout(q, k, v, self, scale)
        return packed_layout(q, k, v, self, scale, getattr(module, "tuyi_kernel", None))

    def asking(self, x: Tensor) -> Tensor:
        """As :class:`Attends` says."""
        return x if self.ends is None else x.index_select(1, self.ends.at)

    def leaving(self, x: Tensor) -> Tensor:
        """As :class:`Attends` says."""
        return x if self.ends is None else x.index_select(1, self.ends.read)

    def tensors(self) -> Iterator[Tensor]:
        """As :class:`Attends` says."""
        for segments in (self.segments, self.prompts, None if self.ends is None else self.ends.segments):
            if segments is not None:
                yield from (segments.cu_q, segments.cu_k)
        if self.keys is not None:
            yield self.keys
        if self.ends is not None:
            yield from (self.ends.at, self.ends.read)

    def leaves(self) -> Segments:
        """Each label branch by itself, counted from the first of their tokens."""
        assert self.branches is not None
        lengths = [length for row in self.branches.lengths for length in row if length]
        cu = self.segments.cu_q[-len(lengths) - 1 :] - self.roots
        return Segments(cu, cu, max(lengths), max(lengths), True)


def _cumulative(lengths: Sequence[int]) -> Tensor:
    return F.pad(torch.tensor(lengths, dtype=torch.int32).cumsum(0, dtype=torch.int32), (1, 0))


def _keys(shared: int, lengths: Sequence[int], leaves: int) -> Tensor:
    """The token of each key: prefix; prefix and row, for each row; branches."""
    prefix = torch.arange(shared)
    parts, at = [prefix], shared
    for length in lengths:
        parts.extend((prefix, torch.arange(at, at + length)))
        at += length
    return torch.cat([*parts, torch.arange(at, at + leaves)])
