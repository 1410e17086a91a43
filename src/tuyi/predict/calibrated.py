"""From the model's log-probabilities to the probabilities that a prediction says."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tuyi.model.folder import FolderInfo, temperature

__all__ = ["calibrated", "normalise"]


def calibrated(logprobs: Mapping[str, float], info: FolderInfo | None, task: str) -> dict[str, float]:
    """Probabilities of the labels, at the temperature that the model folder remembers.

    Args:
        logprobs: Of each label, not normalised.
        info: What the model folder says.
        task: Name of the task.
    """
    chances = normalise(np.array(list(logprobs.values()), np.float32), temperature(info, task))
    return dict(zip(logprobs, map(float, chances)))


def normalise(logprobs: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float64]:
    """Probabilities over the labels alone: softmax of ``logprobs / temperature``."""
    scaled = logprobs.astype(np.float64) / temperature
    exp = np.exp(scaled - scaled.max())
    result: NDArray[np.float64] = exp / exp.sum()
    return result
