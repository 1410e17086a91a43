"""One example as model input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuyi.data.example import Turn
from tuyi.task.task import Task
from tuyi.vision.spec import ImagePatches, VideoPatches

__all__ = ["Asked", "Encoded", "Media"]


@dataclass(frozen=True, slots=True, eq=False)
class Media:
    """A picture or video of an encoded row, and where its visual tokens stand.

    Args:
        patches: The pixels.
        spans: (begin, end) token ranges, in order; one for a picture, one a temporal patch for a Qwen3-VL video.
        key: Equal for equal pixels; None where nobody asks.
    """

    patches: ImagePatches | VideoPatches
    spans: tuple[tuple[int, int], ...]
    key: bytes | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """One example as model input.

    Args:
        id: The example's id.
        task: Name of its task.
        ids: int32, shape (T,): token ids, the answer last where the row is encoded for training.
        supervised: bool, shape (T,): the tokens that the loss counts, each predicted from the one before.
        positions: int32, shape (3, T): M-RoPE positions (temporal, height, width).
        media: Pictures and videos in the order of their tokens.
        weight: Weight of the row in the loss.
        notes: What the budget made it drop: ``dropped_turns``, ``shrunk_images``, ``cut_characters``.
    """

    id: str
    task: str
    ids: NDArray[np.int32]
    supervised: NDArray[np.bool_]
    positions: NDArray[np.int32]
    media: tuple[Media, ...] = ()
    weight: float = 1.0
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """One example as an engine outside this process is asked it: shortened and resized as :class:`Encoded` is.

    Args:
        id: The example's id.
        task: Its task.
        turns: The conversation that fits the budget, the user's message last.
        pictures: The pictures of the conversation, in order.
        ids: Token ids of the prompt, with one pad token for each picture, however large.
        tokens: Tokens of the prompt as a model reads it, pictures in full.
        notes: As those of :class:`Encoded`.
    """

    id: str
    task: Task
    turns: tuple[Turn, ...]
    pictures: tuple[ImagePatches, ...]
    ids: tuple[int, ...]
    tokens: int
    notes: Mapping[str, Any] = field(default_factory=dict)
