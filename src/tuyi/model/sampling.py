"""In which order tokens are tried: the likeliest first, or by chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Sampler", "Sampling", "ranked"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn.

    Args:
        temperature: Above 0; higher is more even.
        top_p: Only the likeliest tokens that have this probability together are drawn (arXiv 1904.09751, section 3.1).
        seed: Equal seeds draw the same from the same logits.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0


class Sampler:
    """Draws the tokens of one row.

    Args:
        sampling: How.
        device: Of the logits.
    """

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self._how = sampling
        self._generator = torch.Generator(device).manual_seed(sampling.seed)

    def scores(self, logits_V: Tensor) -> Tensor:
        """Scores whose descending order is that of draws without putting back, the tokens beyond ``top_p`` last.

        Source: the Gumbel-top-k trick (arXiv 1903.06059, section 2.3).
        """
        logprobs_V = (logits_V / self._how.temperature).log_softmax(0)
        noise_V = -torch.empty_like(logprobs_V).exponential_(generator=self._generator).log()
        drawn_V = logprobs_V + noise_V
        if self._how.top_p >= 1:
            return drawn_V
        sorted_V, order_V = logprobs_V.sort(descending=True)
        before_V = sorted_V.exp().cumsum(0) - sorted_V.exp()
        outside_V = torch.empty_like(before_V, dtype=torch.bool).scatter_(0, order_V, before_V >= self._how.top_p)
        return torch.where(outside_V, logprobs_V - 1e6, drawn_V)


def ranked(logits_RV: Tensor, samplers: Sequence[Sampler | None]) -> Tensor:
    """Scores of the tokens behind each row, the one to try first highest.

    Args:
        logits_RV: Of the rows.
        samplers: Of each row; None takes the likeliest.

    Returns:
        (R, V): the logits themselves, but for rows that are drawn.
    """
    if not any(samplers):
        return logits_RV
    return torch.stack([row if one is None else one.scores(row) for row, one in zip(logits_RV, samplers, strict=True)])
