"""The variable-length attention kernel of this machine."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["varlen_attention", "varlen_available"]


def varlen_available(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> bool:
    """Whether the kernel runs here: on CUDA (Ampere or newer), in 16-bit types."""
    return device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)


@cache
def _groups_heads() -> bool:
    """Whether torch's kernel takes fewer key heads than query heads (torch 2.12 and later)."""
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


def varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, *,
    causal: bool, scale: float | None, lse: bool = False,
) -> Any:  # fmt: skip
    """FlashAttention over packed segments.

    Args:
        q: (T_q, H, D); k and v: (T_k, H or fewer, D).
        cu_q, cu_k: int32, shape (N + 1,): cumulative segment lengths.
        max_q, max_k: Longest segments.
        causal: Whether a query sees only keys up to its own place.
        scale: Factor on the scores; the usual one where None.
        lse: Whether to return the log-sum-exp of the scores as well.

    Returns:
        (T_q, H, D), and with ``lse`` also (T_q, H) in float32.
    """
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    extra: dict[str, Any] = {}
    if q.shape[1] != k.shape[1]:
        if _groups_heads():
            extra["enable_gqa"] = True
        else:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    window = (-1, 0) if causal else (-1, -1)
    out = varlen_attn(
        q, k, v, cu_q, cu_k, max_q, max_k,
        scale=scale, window_size=window, return_aux=AuxRequest(lse=True) if lse else None, **extra,
    )  # fmt: skip
    return (out[0], out[1].transpose(0, 1)) if lse else out
