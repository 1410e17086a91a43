"""The size at which a picture is shown to the model."""

from __future__ import annotations

import math

__all__ = ["MAX_ASPECT_RATIO", "smart_resize"]

MAX_ASPECT_RATIO = 200
"""Up to this ratio of the sides the size is exactly the reference implementation's; it refuses longer pictures."""


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Height and width, multiples of ``factor``, inside a pixel budget, at nearly the picture's own aspect ratio.

    The short side of a picture longer than 200 : 1 is first stretched to ``factor``, since less than one patch cannot
    be shown; then the same formula holds. Where that side cannot shrink further, the long one is cut to the budget.

    Args:
        height, width: Size of the picture in pixels.
        factor: Patch size times merge size.
        min_pixels, max_pixels: Smallest and largest area.

    Source: ``smart_resize`` of transformers' ``Qwen2VLImageProcessor``, equal up to 200 : 1.
    """
    extreme = max(height, width) > MAX_ASPECT_RATIO * min(height, width)
    if extreme:
        height, width = max(height, factor), max(width, factor)
    tall = round(height / factor) * factor
    wide = round(width / factor) * factor
    if tall * wide > max_pixels:
        shrink = math.sqrt((height * width) / max_pixels)
        tall = max(factor, math.floor(height / shrink / factor) * factor)
        wide = max(factor, math.floor(width / shrink / factor) * factor)
    elif tall * wide < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        tall = math.ceil(height * grow / factor) * factor
        wide = math.ceil(width * grow / factor) * factor
    if extreme:
        longest = max(factor, max_pixels // min(tall, wide) // factor * factor)
        tall, wide = min(tall, longest), min(wide, longest)
    return tall, wide
