"""Which queries see which keys in a pack."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Segments"]


@dataclass(frozen=True, eq=False, slots=True)
class Segments:
    """Which queries see which keys: segment by segment.

    Args:
        cu_q, cu_k: int32, shape (N + 1,): cumulative lengths; each query segment sees the key segment of its number.
        max_q, max_k: Longest segments.
        causal: Whether a query sees only keys up to its own place, counted from the end of both segments.
    """

    cu_q: Tensor
    cu_k: Tensor
    max_q: int
    max_k: int
    causal: bool
