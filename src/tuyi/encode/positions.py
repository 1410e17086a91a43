"""M-RoPE positions: where each token stands in time, height and width (arXiv 2409.12191, section 2.1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tuyi.vision.spec import Family, ImagePatches, VideoPatches

__all__ = ["mrope_positions", "time_step"]


def time_step(patches: ImagePatches | VideoPatches, family: Family, tokens_per_second: float) -> float:
    """Temporal positions between two temporal patches: seconds count for Qwen2.5-VL only (arXiv 2502.13923)."""
    if family == "qwen2_5_vl" and isinstance(patches, VideoPatches):
        return tokens_per_second * patches.seconds_per_grid
    return 1.0


def mrope_positions(
    length: int, blocks: Sequence[tuple[int, tuple[int, int, int], float]], merge_size: int
) -> NDArray[np.int32]:
    """Positions of a sequence of text and visual tokens.

    Text tokens count on by one in all three rows. A visual block starts where the text before it ended;
    its rows are the indices of its grid, and the text after it goes on behind its longer side, as
    transformers' ``get_rope_index`` does.

    Args:
        length: Tokens T.
        blocks: (first token, (t, h, w) in patches, step of the temporal index), in order.
        merge_size: Patches a side of one visual token.

    Returns:
        int32, shape (3, T).
    """
    positions_3T = np.empty((3, length), np.int32)
    at, position = 0, 0
    for begin, (t, h, w), step in blocks:
        positions_3T[:, at:begin] = np.arange(position, position + begin - at, dtype=np.int32)
        position += begin - at
        rows, columns = h // merge_size, w // merge_size
        end = begin + t * rows * columns
        block = positions_3T[:, begin:end].reshape(3, t, rows, columns)
        block[0] = (np.arange(t) * step).astype(np.int32)[:, None, None] + position
        block[1] = np.arange(rows, dtype=np.int32)[:, None] + position
        block[2] = np.arange(columns, dtype=np.int32) + position
        at = end
        position += max(rows, columns)
    positions_3T[:, at:] = np.arange(position, position + length - at, dtype=np.int32)
    return positions_3T
