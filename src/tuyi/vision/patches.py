"""A picture as rows of patches, in the order of the model's vision tower."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tuyi.vision.resize import smart_resize
from tuyi.vision.spec import ImagePatches, VisionSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tuyi.data.example import Image

__all__ = ["image_grid", "image_patches", "patchify"]


def image_grid(width: int, height: int, spec: VisionSpec, min_pixels: int, max_pixels: int) -> tuple[int, int, int]:
    """The grid of a picture of a known size, without opening it.

    Args:
        width, height: Size as a viewer shows it (:func:`~tuyi.vision.image.probe_image`).
        spec: The model's vision tower.
        min_pixels, max_pixels: Smallest and largest area of the resized picture.

    Returns:
        (1, h, w) in patches.
    """
    tall, wide = smart_resize(height, width, spec.factor, min_pixels, max_pixels)
    return 1, tall // spec.patch_size, wide // spec.patch_size


def image_patches(image: Image, spec: VisionSpec, min_pixels: int, max_pixels: int) -> ImagePatches:
    """A picture, decoded, resized (bicubic, on uint8) and cut into patches.

    Args:
        image: Reference to the picture.
        spec: The model's vision tower.
        min_pixels, max_pixels: Smallest and largest area of the resized picture.

    Raises:
        MediaError: The picture cannot be used.

    Source: transformers' ``Qwen2VLImageProcessorPil``; equal to its ``pixel_values`` before rescaling and normalising,
    with one frame instead of the doubled one.
    """
    from PIL.Image import Resampling

    from tuyi.vision.image import load_rgb

    picture = load_rgb(image)
    grid = image_grid(picture.width, picture.height, spec, min_pixels, max_pixels)
    size = (grid[2] * spec.patch_size, grid[1] * spec.patch_size)
    if picture.size != size:
        picture = picture.resize(size, Resampling.BICUBIC)
    frames_THWC = np.asarray(picture)[None]
    return ImagePatches(patchify(frames_THWC, spec.patch_size, spec.merge_size), grid)


def patchify(frames_THWC: NDArray[np.uint8], patch_size: int, merge_size: int) -> NDArray[np.uint8]:
    """Rows of patches of one picture (T = 1) or of the frames that share a temporal patch, in one copy.

    Args:
        frames_THWC: Frames whose sides are multiples of ``patch_size * merge_size``.
        patch_size, merge_size: As in :class:`~tuyi.vision.spec.VisionSpec`.

    Returns:
        Shape (h * w, C * T * patch_size ** 2): rows in blocks of ``merge_size`` squared, each row channel, frame, y, x.
    """
    frames, height, width, channels = frames_THWC.shape
    h, w = height // patch_size, width // patch_size
    blocks = frames_THWC.reshape(
        frames, h // merge_size, merge_size, patch_size, w // merge_size, merge_size, patch_size, channels
    )
    return blocks.transpose(1, 4, 2, 5, 7, 0, 3, 6).reshape(h * w, channels * frames * patch_size**2)
