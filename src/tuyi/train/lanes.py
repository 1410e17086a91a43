"""The passes of a step side by side on a CPU, each lane with gradients of its own, which are added up at its end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tuyi.model.side_by_side import core_threads, twin
from tuyi.train.feed import Ready

__all__ = ["Lanes", "lanes_of"]

_GRADIENT_BYTES = 256 << 20
"""What the gradients of all lanes may take together."""


def lanes_of(learning: int, threads: int) -> int:
    """How many passes run side by side: one for each thread, as far as their gradients stay small.

    Args:
        learning: Number of weights that learn, of 32 bits.
        threads: That the model may use.
    """
    return max(1, min(threads, _GRADIENT_BYTES // (4 * learning)))


class Lanes:
    """Threads that run the passes of a step.

    Args:
        model: The model; its gradients are those of all lanes.
        count: How many lanes.
        one_pass: Runs a pack through a model and adds up gradients there; returns the loss.
    """

    def __init__(self, model: nn.Module, count: int, one_pass: Callable[[nn.Module, Ready, float], Tensor]) -> None:
        self._one_pass = one_pass
        self._twins = [twin(model, learns=True) for _ in range(count)]
        self._weights, *self._others = ([w for w in m.parameters() if w.requires_grad] for m in (model, *self._twins))
        self._pool = core_threads(count)

    def run(self, packs: Sequence[Ready], scale: float) -> Tensor:
        """The loss of a step, its gradients at the model.

        A pack always has the same lane, and lanes are added up in order, so that runs can be repeated.

        Args:
            packs: All packs of the step.
            scale: Factor on the loss.
        """
        shares = [packs[lane :: len(self._twins)] for lane in range(len(self._twins))]
        if _follow_each_other(packs):
            shares = [packs]
        running = [
            self._pool.submit(self._lane, model, share, scale) for model, share in zip(self._twins, shares) if share
        ]
        total = torch.stack([one.result() for one in running]).sum()
        for others in self._others:
            for weight, other in zip(self._weights, others, strict=True):
                if other.grad is not None:
                    weight.grad = other.grad if weight.grad is None else weight.grad.add_(other.grad)
                    other.grad = None
        return total

    def close(self) -> None:
        """End the threads; safe to call twice."""
        self._pool.shutdown(cancel_futures=True)

    def _lane(self, model: nn.Module, packs: Sequence[Ready], scale: float) -> Tensor:
        model.train()
        return torch.stack([self._one_pass(model, ready, scale) for ready in packs]).sum()


def _follow_each_other(packs: Sequence[Ready]) -> bool:
    """Whether a pack counts on features that another one of the same step makes."""
    towers: list[Any] = [ready.batch.tower for ready in packs if ready.batch.tower is not None]
    made = {key for tower in towers for key in tower.keys if key is not None}
    return any(key in made for tower in towers for key in tower.known)
