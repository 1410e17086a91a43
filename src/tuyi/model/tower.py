"""What passes the vision tower, with all that depends on the grids made before the layers run.

transformers' towers take positions, segments and windows ready-made; left to themselves they would compute them from
the grids on the GPU and wait for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from tuyi.encode.pack import Pack, Visual
from tuyi.vision.spec import VisionSpec

__all__ = ["Seen", "Tower", "grid_inputs", "seen_by"]


@dataclass(frozen=True, eq=False, slots=True)
class Tower:
    """Pictures and videos of a pack as the tower takes them.

    Args:
        patches: uint8 (P, D), pictures first, then videos.
        grids: (N, 3), on the CPU.
        inputs: transformers' names of what is made ready → values.
        at: (V,): the token each used feature replaces.
        features: (V,): which feature stands there; None where they are in order.
    """

    patches: Tensor
    grids: Tensor
    inputs: dict[str, Any]
    at: Tensor
    features: Tensor | None


@dataclass(frozen=True, eq=False, slots=True)
class Seen:
    """The visual part of a pack in host memory, before it is copied.

    Args:
        patches: Each uint8 (P_i, D).
        grids: (N, 3). at, features: (V,).
    """

    patches: tuple[np.ndarray[Any, Any], ...]
    grids: np.ndarray[Any, Any]
    at: np.ndarray[Any, Any]
    features: np.ndarray[Any, Any]


def seen_by(pack: Pack, spec: VisionSpec, *, always: bool = False) -> Seen | None:
    """Pictures and videos of a pack together, so that the tower runs once.

    Args:
        pack: The pack.
        spec: The model's vision facts.
        always: Whether a pack without media gets one black picture that no token reads.
    """
    parts = [part for part in (pack.images, pack.videos) if part is not None]
    if not parts:
        if not always:
            return None
        side, none = spec.merge_size, np.zeros(0, np.int64)
        black = np.zeros((side * side, 3 * spec.patch_size**2), np.uint8)
        return Seen((black,), np.asarray([[1, side, side]], np.int64), none, none)
    if len(parts) == 1:
        return Seen(parts[0].patches, parts[0].grids, parts[0].at, parts[0].features)
    stills, videos = parts
    after = int(stills.grids.prod(1).sum()) // spec.merge_size**2
    return Seen(
        (*_doubled(stills, spec), *videos.patches),
        np.concatenate([stills.grids, videos.grids]),
        np.concatenate([stills.at, videos.at]),
        np.concatenate([stills.features, videos.features + after]),
    )


def _doubled(stills: Visual, spec: VisionSpec) -> list[np.ndarray[Any, Any]]:
    """A picture beside a video takes the video's form: its one frame, doubled."""
    frames = spec.temporal_patch_size
    return [
        np.repeat(values.reshape(len(values), 3, 1, -1), frames, axis=2).reshape(len(values), -1)
        for values in stills.patches
    ]


def grid_inputs(spec: VisionSpec, grids: Tensor) -> dict[str, Any]:
    """What a tower derives from its grids, by transformers' own functions.

    Args:
        spec: The model's vision facts.
        grids: (N, 3), on the CPU.

    Returns:
        Keyword arguments of the tower's forward pass: tensors on the CPU and integers.
    """
    from transformers import vision_utils

    cu = vision_utils.get_vision_cu_seqlens(grids)
    inputs: dict[str, Any] = {
        "position_ids": vision_utils.get_vision_position_ids(grids, spec.merge_size),
        "cu_seqlens": cu,
        "max_seqlen": int(cu.diff().max()),
    }
    if spec.family == "qwen2_5_vl":
        index, windows = vision_utils.get_vision_window_index(grids, spec.merge_size, spec.window_size, spec.patch_size)
        longest = int(windows.diff().max())
        inputs |= {"window_index": index, "cu_window_seqlens": windows, "max_window_seqlen": longest}
    if spec.family == "qwen3_vl":
        indices, weights = vision_utils.get_vision_interpolation_indices_and_weights(
            grids, spec.position_side, align_corners=True, spatial_merge_size=spec.merge_size
        )
        inputs |= {"interp_indices": indices, "interp_weights": weights}
    return inputs
