"""Log-probabilities of given tokens without ever holding the logits of the whole vocabulary, backward neither.

The logits of a slice of the vocabulary are made, used and dropped, and made again on the way back. Slices, rather than
positions, keep the gradient of the head exact: each row of its weight is one matrix product over all positions.

Source: the idea is that of "Cut Your Losses in Large-Vocabulary Language Models" (arXiv 2411.09009).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["MOST_LOGITS", "target_log_probs"]

MOST_LOGITS = 1 << 27
"""Logits that are held at a time."""


def target_log_probs(hidden_KD: Tensor, weight_VD: Tensor, read_N: Tensor, targets_N: Tensor) -> Tensor:
    """log softmax(hidden weightᵀ) at given tokens, float32, shape (N,).

    Args:
        hidden_KD: Hidden states as they enter the head.
        weight_VD: The head's weight, of the same type.
        read_N: int64, for each target the position that predicts it.
        targets_N: int64, token ids.
    """
    found: Tensor = _TargetLogProbs.apply(hidden_KD, weight_VD, read_N, targets_N)
    return found


class _TargetLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_KD: Tensor, weight_VD: Tensor, read_N: Tensor, targets_N: Tensor) -> Tensor:
        sums_K, found_N = None, torch.zeros(len(read_N), device=hidden_KD.device)
        for begin, end in _slices(hidden_KD, weight_VD):
            logits_KS = F.linear(hidden_KD, weight_VD[begin:end]).float()
            here_N, at_N = _inside(targets_N, begin, end)
            found_N += torch.where(here_N, logits_KS[read_N, at_N], 0.0)
            part_K = logits_KS.logsumexp(1)
            sums_K = part_K if sums_K is None else torch.logaddexp(sums_K, part_K)
            del logits_KS  # or it would stand beside the next
        assert sums_K is not None
        ctx.save_for_backward(hidden_KD, weight_VD, read_N, targets_N, sums_K)
        return found_N - sums_K[read_N]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden_KD, weight_VD, read_N, targets_N, sums_K = ctx.saved_tensors
        (given_N,) = gradients
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        total_K1 = torch.zeros_like(sums_K).index_put_((read_N,), given_N, accumulate=True)[:, None]
        to_hidden_KD = torch.zeros_like(hidden_KD, dtype=torch.float32) if wants_hidden else None
        to_weight_VD = torch.empty_like(weight_VD) if wants_weight else None
        for begin, end in _slices(hidden_KD, weight_VD):
            part_SD = weight_VD[begin:end]
            grad_KS = F.linear(hidden_KD, part_SD).float().sub_(sums_K[:, None]).exp_().mul_(-total_K1)
            here_N, at_N = _inside(targets_N, begin, end)
            grad_KS.index_put_((read_N, at_N), given_N * here_N, accumulate=True)
            half_KS = grad_KS.to(hidden_KD.dtype)
            if to_hidden_KD is not None:
                to_hidden_KD += half_KS @ part_SD
            if to_weight_VD is not None:
                torch.mm(half_KS.T, hidden_KD, out=to_weight_VD[begin:end])
            del grad_KS, half_KS
        return None if to_hidden_KD is None else to_hidden_KD.to(hidden_KD.dtype), to_weight_VD, None, None


def _slices(hidden_KD: Tensor, weight_VD: Tensor) -> Iterator[tuple[int, int]]:
    """Parts of the vocabulary whose logits are held together, alike in size."""
    vocabulary = len(weight_VD)
    count = -(-vocabulary * len(hidden_KD) // MOST_LOGITS)
    width = -(-vocabulary // max(1, count))
    yield from ((begin, min(begin + width, vocabulary)) for begin in range(0, vocabulary, width))


def _inside(targets_N: Tensor, begin: int, end: int) -> tuple[Tensor, Tensor]:
    """Which targets lie in a slice, and where; 0 for the others."""
    here_N = (targets_N >= begin) & (targets_N < end)
    return here_N, torch.where(here_N, targets_N - begin, 0)
