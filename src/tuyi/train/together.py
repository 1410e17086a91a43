"""Processes that hold the same weights: gradients are summed over them while the backward pass goes on.

torch's DistributedDataParallel does the same, but only for gradients of the weights' own type; those of bfloat16
weights are added up in float32 here.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, distributed, nn

__all__ = ["Together"]


class Together(nn.Module):
    """A model whose gradients are those of all processes together.

    All processes must use the same weights in every pass.

    Args:
        model: The model; its learning weights are made those of the first process.

    Attributes:
        is_last: Whether gradients are complete after the coming backward pass, and are to be summed.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module = model
        self.is_last = False
        self._sums: list[distributed.Work] = []
        for weight in model.parameters():
            if weight.requires_grad:
                distributed.broadcast(weight.data, src=0)
                weight.register_post_accumulate_grad_hook(self._sum)

    def forward(self, **inputs: Any) -> Any:
        return self.module(**inputs)

    def finish(self) -> None:
        """Wait for the sums; on a GPU its stream does."""
        for one in self._sums:
            one.wait()
        self._sums.clear()

    def _sum(self, weight: Tensor) -> None:
        if self.is_last:
            assert weight.grad is not None
            work = distributed.all_reduce(weight.grad, async_op=True)
            assert work is not None
            self._sums.append(work)
