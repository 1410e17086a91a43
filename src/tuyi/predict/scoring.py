"""Exact scoring of every label: the model's probability of each full answer, in one pass.

The labels' tokens are laid behind each prompt as branches; a branch sees the prompt and itself. So one pass over the
pack gives log P(answer | prompt) for every label, the terminator counted, the same as scoring each label in a
sequence of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from tuyi.encode.encoded import Encoded
from tuyi.encode.encoder import LabelTokens
from tuyi.encode.pack import pack
from tuyi.model.forward import to_device
from tuyi.model.load import Model

__all__ = ["normalise", "score_labels"]

_ROWS_OF_LOGITS = 512  # kept positions whose logits are held at once: a vocabulary of 152k in float32 is 0.6 MB each


@torch.inference_mode()
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
    hidden_KD = model.hf(batch=batch, head=False)
    scores = []
    for hidden, targets in zip(hidden_KD.split(_ROWS_OF_LOGITS), batch.targets.split(_ROWS_OF_LOGITS)):
        logits = model.hf.lm_head(hidden).float()
        scores.append(logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(1))
    tokens_K = torch.cat(scores).double().cpu()
    sizes = [len(ids) for answers in labels for ids in answers.ids]
    each = torch.stack([part.sum() for part in tokens_K.split(sizes)]).numpy()
    cuts = np.cumsum([len(answers.names) for answers in labels])[:-1]
    return [part.astype(np.float32) for part in np.split(each, cuts)]


def normalise(logprobs: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float64]:
    """Probabilities over the labels alone: softmax of ``logprobs / temperature``."""
    scaled = logprobs.astype(np.float64) / temperature
    exp = np.exp(scaled - scaled.max())
    result: NDArray[np.float64] = exp / exp.sum()
    return result
