"""A run that goes wrong is stopped while its checkpoints are still good."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["what_is_wrong"]

_FIRST = 20


def what_is_wrong(loss: float, before: Sequence[float], spike: float | None) -> str | None:
    """Why a loss should stop a run; None where it should not.

    A spike is measured against the first losses, those of a model that has learned little: a single hard or mislabelled
    row late in a run is far above the losses around it, but a batch that is several times worse than not having learned
    at all means that the weights are being destroyed.

    Args:
        loss: Of the step.
        before: Losses of the earlier steps, in order.
        spike: Largest factor on the largest of the first 20 losses; None to let all pass that are numbers.
    """
    if not math.isfinite(loss):
        return f"the loss became {loss}"
    first = before[:_FIRST]
    if spike is None or len(first) < _FIRST or loss <= spike * max(first):
        return None
    return f"the loss rose to {loss:.3f}, more than {spike:g} times the {max(first):.3f} that the run began with"
