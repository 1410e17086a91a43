"""Attention over two sets of keys, from attention over each of them, with its gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tuyi.model.kernels import Kernel, attend
from tuyi.model.segments import Segments

__all__ = ["join", "lse_with_gradient"]


def join(one: Tensor, one_lse: Tensor, other: Tensor, other_lse: Tensor) -> Tensor:
    """Attention over both sets of keys.

    Args:
        one, other: (T, H, D): attention over each set.
        one_lse, other_lse: float32, shape (H, T): the log-sum-exp of the scores of each.
    """
    share = torch.sigmoid(other_lse - one_lse).transpose(0, 1).unsqueeze(-1)
    first = one.float()
    return (first + share * (other.float() - first)).to(one.dtype)


def lse_with_gradient(
    lse_HT: Tensor, q: Tensor, k: Tensor, at: Segments, scale: float | None, kernel: Kernel | None
) -> Tensor:
    """The same log-sum-exp, with the gradient that kernels do not give it: varlen attention drops it without a word.

    The differential of log Σ_j exp(s_ij) is Σ_j P_ij ds_ij with s_ij = scale * q_i·k_j. Attention with the keys in the
    values' place, Σ_j P_ij k_j, has all that it needs: its value is what q_i meets, its gradient to the values is what
    the keys get.

    Args:
        lse_HT: float32, as the kernel gave it.
        q, k: (T, H, D) and (T_k, H or fewer, D), of the same call.
        at, scale, kernel: Of the same call.
    """
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    mean, _ = attend(q.detach(), k.detach(), k, at, scale, kernel)  # Σ_j P_ij k_j
    met = q.float() * mean.detach().float() + q.detach().float() * mean.float()
    sums_HT = scale * met.sum(-1).transpose(0, 1)
    return lse_HT.detach() + (sums_HT - sums_HT.detach())
