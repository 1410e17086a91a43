"""What a model family asks of pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Family", "ImagePatches", "VideoPatches", "VisionSpec"]

Family: TypeAlias = Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]


@dataclass(frozen=True, slots=True)
class VisionSpec:
    """The fixed facts of a model's vision tower, read from its configuration.

    Args:
        family: Which of the three families; they differ in video timing and position rules.
        patch_size: Side of a patch in pixels (14, or 16 for Qwen3-VL).
        merge_size: Patches a side that become one visual token (2).
        temporal_patch_size: Frames in one patch (2).
        mean, std: Normalisation of the channels, on the 0–1 scale.
        tokens_per_second: Qwen2.5-VL's temporal position rate; unused by the others.
        window_size: Pixels a side of Qwen2.5-VL's attention windows; unused by the others.
        position_side: Places a side of Qwen3-VL's learned position table; unused by the others.
    """

    family: Family
    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    tokens_per_second: float = 2.0
    window_size: int = 112
    position_side: int = 48

    @property
    def factor(self) -> int:
        """Sides of a resized picture are multiples of this many pixels."""
        return self.patch_size * self.merge_size


@dataclass(frozen=True, slots=True, eq=False)
class ImagePatches:
    """One picture as model input.

    Args:
        values: uint8, shape (P, 3 * patch_size ** 2): one row a patch, channel-major, in the tower's merge order
            (the order of transformers' image processor, but one frame instead of the doubled one).
        grid: (1, h, w) in patches; P = h * w.
    """

    values: NDArray[np.uint8]
    grid: tuple[int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class VideoPatches:
    """One video as model input.

    Args:
        values: uint8, shape (P, 3 * temporal_patch_size * patch_size ** 2), in transformers' patch order.
        grid: (t, h, w) in patches; P = t * h * w.
        seconds_per_grid: Seconds between two temporal patches.
        timestamps: Seconds at which each temporal patch stands, length t (Qwen3-VL writes them into the prompt).
    """

    values: NDArray[np.uint8]
    grid: tuple[int, int, int]
    seconds_per_grid: float
    timestamps: tuple[float, ...]
