"""What training minimises."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from tuyi.model.forward import Batch

__all__ = ["answer_loss"]


def answer_loss(logits_KV: Tensor, batch: Batch) -> Tensor:
    """Weighted sum of the cross-entropy of the targets; a scalar.

    Where a row is taught a distribution q over its labels, each target of label l weighs q_l, so that the row's loss is
    Σ_l q_l · -log P(answer l, terminator included | prompt): the cross-entropy between q and the model's labels.

    A step divides it by Σ row weight × tokens of the row's true answer, with and without such a distribution: the
    targets of the other labels are no further evidence, and a row with ε = 0 then counts exactly as a plain one.

    Args:
        logits_KV: Of the kept tokens.
        batch: The pack, with ``read``, ``targets`` and ``weights`` of the same length.
    """
    losses_N = -F.log_softmax(logits_KV, dim=1)[batch.read, batch.targets]
    return (losses_N * batch.weights).sum()
