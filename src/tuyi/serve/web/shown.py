"""Rows as the page shows them: the dialogue as bubbles, with small pictures at their places. Plain data, no HTML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tuyi.evaluate.mistakes import MistakeView, NearLabel, view
from tuyi.evaluate.rows import Mistake
from tuyi.predict.prediction import Prediction

if TYPE_CHECKING:
    from tuyi.data.example import Example
    from tuyi.task.task import Task

__all__ = ["said_in", "shown_bubbles", "shown_labels"]

_MOST_PICTURES = 64


def said_in(example: Example, task: Task, side: int) -> list[dict[str, Any]]:
    """The bubbles of a row.

    Args:
        example: The row; of its pictures, small copies are made.
        task: Says where its own content is and where a turn begins.
        side: Longer side of a picture, in pixels.
    """
    nothing = Prediction(example.id, task.name, "", {}, {})
    return shown_bubbles(view(Mistake(example, task, "", nothing, None), side, _MOST_PICTURES))


def shown_bubbles(seen: MistakeView) -> list[dict[str, Any]]:
    """The bubbles of a row, the oldest first: ``who`` speaks, on which ``side``, and the ``pieces``.

    Why a picture is not shown stays here: it would tell paths of the server.
    """
    return [bubble.data(problems=False) for bubble in (*seen.earlier, *seen.bubbles)]


def shown_labels(near: Sequence[NearLabel]) -> list[dict[str, Any]]:
    """Labels with their probabilities and ranks; ``kind`` is ``gold``, ``wrong`` or empty."""
    return [{"label": one.label, "share": one.probability, "rank": one.rank, "kind": one.kind} for one in near]
