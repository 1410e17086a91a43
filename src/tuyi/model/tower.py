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
        patches: uint8 (P, D), pictures first, then videos; None where all features are known.
        grids: (N, 3), on the CPU.
        inputs: transformers' names of what is made ready → values.
        keys: Of the N; under these their features are kept, where a pass is given something to keep them in.
        known: Keys of the features that follow the tower's own.
        at: (V,): the token each used feature replaces.
        features: (V,): which feature stands there; None where they are in order.
    """

    patches: Tensor | None
    grids: Tensor
    inputs: dict[str, Any]
    keys: tuple[bytes | None, ...]
    known: tuple[bytes, ...]
    at: Tensor
    features: Tensor | None


@dataclass(frozen=True, eq=False, slots=True)
class Seen:
    """The visual part of a pack in host memory, before it is copied.

    Args:
        patches: Each uint8 (P_i, D).
        grids: (N, 3). keys: N.
        known: Keys of the features that follow the tower's own.
        at, features: (V,).
    """

    patches: tuple[np.ndarray[Any, Any], ...]
    grids: np.ndarray[Any, Any]
    keys: tuple[bytes | None, ...]
    known: tuple[bytes, ...]
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
        return Seen((black,), np.asarray([[1, side, side]], np.int64), (None,), (), none, none)
    new = [sum(count for _, count in part.new) for part in parts]
    # the features of all parts that the tower makes come first, then the known ones of each part
    fresh, old = np.cumsum([0, *new]), sum(new)
    features = []
    for part, own, begin in zip(parts, new, fresh):
        features.append(np.where(part.features < own, part.features + begin, part.features - own + old))
        old += sum(count for _, count in part.known)
    both = len(parts) == 2 and all(part.patches for part in parts)
    patches = [_doubled(part, spec) if both and part is pack.images else part.patches for part in parts]
    return Seen(
        patches=tuple(values for of_part in patches for values in of_part),
        grids=np.concatenate([part.grids for part in parts]),
        keys=tuple(key for part in parts for key, _ in part.new),
        known=tuple(key for part in parts for key, _ in part.known),
        at=np.concatenate([part.at for part in parts]).astype(np.int64),
        features=np.concatenate(features).astype(np.int64),
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
