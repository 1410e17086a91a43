"""What attention kernels compute, and what packed attention should, written out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tuyi.model.segments import Segments

__all__ = ["dense_kernel", "kept_of", "visible"]


def visible(
    lengths: Sequence[int], causal: bool, branches: Sequence[Sequence[int]] | None = None, shared: int = 0
) -> Tensor:
    """bool (T, T), written out token by token: who sees whom."""
    owner: list[tuple[int | None, int | None]] = [(None, None)] * shared
    owner += [(row, None) for row, length in enumerate(lengths) for _ in range(length)]
    for row, sizes in enumerate(branches or ()):
        owner += [(row, branch) for branch, size in enumerate(sizes) for _ in range(size)]
    count = len(owner)
    mask = torch.zeros(count, count, dtype=torch.bool)
    for query, (row, branch) in enumerate(owner):
        for key, (other_row, other_branch) in enumerate(owner):
            same = other_row is None or (row == other_row and other_branch in (None, branch))
            mask[query, key] = same and (not causal or key <= query)
    return mask


def dense_kernel(q: Tensor, k: Tensor, v: Tensor, at: Segments, scale: float) -> tuple[Tensor, Tensor]:
    """What a kernel computes, segment by segment; its log-sum-exp has no gradient, as with torch's."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    outs, sums = [], []
    queries, keys = (pairwise(cu.tolist()) for cu in (at.cu_q, at.cu_k))
    for (begin, end), (first, last) in zip(queries, keys, strict=True):
        assert end - begin <= at.max_q
        assert last - first <= at.max_k
        scores = torch.einsum("qhd,khd->hqk", q[begin:end], k[first:last]) * scale
        if at.causal:
            seen = torch.ones(scores.shape[1:], dtype=torch.bool).tril(scores.shape[2] - scores.shape[1])
            scores = scores.masked_fill(~seen, float("-inf"))
        outs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[first:last]))
        sums.append(scores.logsumexp(-1).detach())
    return torch.cat(outs), torch.cat(sums, 1)


def kept_of(lengths: Sequence[int], shared: int, tokens: int, tails: Sequence[int]) -> NDArray[np.int64]:
    """Tokens that are read: of each row's last ones the first and the last, then all branch tokens."""
    ends = shared + np.cumsum(lengths)
    return np.unique([*(ends - tails), *(ends - 1), *range(ends[-1], tokens)])
