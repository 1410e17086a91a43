"""Exact scoring of every label: the model's probability of each full answer, in one pass.

The labels' tokens are laid behind each prompt as branches; a branch sees the prompt and itself. So one pass over the
pack gives log P(answer | prompt) for every label, the terminator counted, the same as scoring each label in a
sequence of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tuyi.encode.encoded import Encoded
from tuyi.encode.encoder import LabelTokens
from tuyi.encode.pack import Pack, pack
from tuyi.model.forward import Batch, to_device
from tuyi.model.kept import Kept
from tuyi.model.load import Model

__all__ = ["Arriving", "gather_labels", "in_reading_order", "score_labels", "score_tokens"]

_ROWS_OF_LOGITS = 512  # kept positions whose logits are held at once: a vocabulary of 152k in float32 is 0.6 MB each


def score_labels(model: Model, rows: Sequence[Encoded], labels: Sequence[LabelTokens]) -> list[NDArray[np.float32]]:
    """Log-probabilities of every label of every row.

    Args:
        model: The model.
        rows: Rows encoded without answers; they pass the model together.
        labels: The labels of each row's task.

    Returns:
        For each row natural logs, float32, shape (labels,), not normalised over the labels.
    """
    packed = pack(rows, labels)
    batch = to_device(packed, model.spec, model.device)
    return gather_labels(score_tokens(model, batch, packed).cpu(), packed, labels)


@torch.inference_mode()
def score_tokens(model: Model, batch: Batch, packed: Pack, kept: Kept | None = None) -> Tensor:
    """Log-probability of every target of a pack, on the device, without waiting for it.

    Args:
        model: The model.
        batch: The pack on its device.
        packed: The pack.
        kept: Features of earlier packs, where this one counts on them.

    Returns:
        float32, shape (N,): in the order of the pack's targets.
    """
    hidden_KD = model.hf(batch=batch, head=False, kept=kept)
    scores = []
    for begin in range(0, len(hidden_KD), _ROWS_OF_LOGITS):
        end = begin + _ROWS_OF_LOGITS
        first, last = np.searchsorted(packed.read, (begin, end))
        logits = model.hf.lm_head(hidden_KD[begin:end]).float()
        read = batch.read[first:last] - begin
        scores.append(logits[read, batch.targets[first:last]] - logits.logsumexp(1)[read])
    return torch.cat(scores)


@dataclass(frozen=True, eq=False, slots=True)
class Arriving:
    """Scores on their way from the device: they have arrived once ``done`` has happened.

    Args:
        scores: float32, shape (N,), on the CPU.
        done: None where they are there.
    """

    scores: Tensor
    done: torch.cuda.Event | None

    @classmethod
    def of(cls, scores_N: Tensor) -> Arriving:
        """Scores that :func:`score_tokens` has begun; on a GPU this returns long before they are there."""
        if not scores_N.is_cuda:
            return cls(scores_N, None)
        host = torch.empty(scores_N.shape, dtype=scores_N.dtype, pin_memory=True)
        host.copy_(scores_N, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        return cls(host, done)

    @property
    def is_there(self) -> bool:
        """Whether they have arrived."""
        return self.done is None or bool(self.done.query())

    def wait(self) -> Tensor:
        """The scores, once they have."""
        if self.done is not None:
            self.done.synchronize()
        return self.scores


def in_reading_order(scores_N: Tensor, packed: Pack) -> NDArray[np.float64]:
    """Log-probabilities of the tokens of labels, row by row, label by label.

    Args:
        scores_N: As :func:`score_tokens` returns them, on the CPU.
        packed: The pack.
    """
    tokens = np.empty(len(scores_N))
    tokens[packed.order] = scores_N.double().numpy()
    return tokens


def gather_labels(scores_N: Tensor, packed: Pack, labels: Sequence[LabelTokens]) -> list[NDArray[np.float32]]:
    """Log-probabilities of whole labels from those of their tokens.

    Args:
        scores_N: As :func:`score_tokens` returns them, on the CPU.
        packed: The pack.
        labels: The labels of each row's task.

    Returns:
        As :func:`score_labels`.
    """
    tokens = in_reading_order(scores_N, packed)
    sizes = [len(ids) for answers in labels for ids in answers.ids]
    each = np.add.reduceat(tokens, np.cumsum([0, *sizes[:-1]]))
    cuts = np.cumsum([len(answers.names) for answers in labels])[:-1]
    return [part.astype(np.float32) for part in np.split(each, cuts)]
