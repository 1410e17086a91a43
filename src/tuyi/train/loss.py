"""What training minimises."""

from __future__ import annotations

import torch
from torch import Tensor

from tuyi.model.forward import Batch
from tuyi.train.soft import SoftTargets

__all__ = ["answer_loss", "divergence"]


def answer_loss(log_probs_N: Tensor, batch: Batch, soft: SoftTargets | None = None) -> Tensor:
    """Weighted sum of the cross-entropy of the targets, and of the divergence to the teacher; a scalar.

    Where a row is taught a distribution h over its labels, each target of label l weighs h_l, so that the row's loss is
    Σ_l h_l · -log P(answer l, terminator included | prompt): the cross-entropy between h and the model's labels.

    A step divides it by Σ row weight × tokens of the row's true answer, with and without such a distribution: the
    targets of the other labels are no further evidence, and a row with ε = 0 then counts exactly as a plain one.

    Args:
        log_probs_N: Of the targets, natural logs.
        batch: The pack, with ``weights`` of the same length.
        soft: What its rows are taught of a teacher.
    """
    loss = -(log_probs_N * batch.weights).sum()
    return loss if soft is None else loss + divergence(log_probs_N, soft)


def divergence(log_probs_N: Tensor, soft: SoftTargets) -> Tensor:
    """Σ_rows weight · T² · KL(q_T ‖ p_T), where p_T = softmax_l(log P(answer l | prompt) / T); a scalar.

    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531), section 2.
    """
    rows, most = soft.teacher.shape
    scores = log_probs_N.new_zeros(rows * most + 1).index_put((soft.slots,), log_probs_N, accumulate=True)
    scores_RL = scores[:-1].view(rows, most) / soft.temperature
    is_label_RL = torch.arange(most, device=scores.device) < soft.counts[:, None]
    student_RL = scores_RL.masked_fill(~is_label_RL, -torch.inf).log_softmax(1).masked_fill(~is_label_RL, 0.0)
    each_R = (torch.xlogy(soft.teacher, soft.teacher) - soft.teacher * student_RL).sum(1)
    return (each_R * soft.weights).sum() * soft.temperature**2
