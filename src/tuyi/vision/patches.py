"""A picture as rows of patches, in the order of the model's vision tower."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tuyi.vision.resize import smart_resize
from tuyi.vision.spec import ImagePatches, VisionSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image as Pillow

    from tuyi.data.example import Image
    from tuyi.vision.augment import Augment
    from tuyi.vision.change import Change

__all__ = ["cut", "image_grid", "image_patches", "patchify", "resized"]


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


def image_patches(
    image: Image,
    spec: VisionSpec,
    min_pixels: int,
    max_pixels: int,
    *,
    draft: bool = False,
    augment: Augment | None = None,
    seed: int = 0,
) -> ImagePatches:
    """A picture, decoded, resized (bicubic, on uint8) and cut into patches.

    Args:
        image: Reference to the picture.
        spec: The model's vision tower.
        min_pixels, max_pixels: Smallest and largest area of the resized picture.
        draft: Decode a JPEG of at least twice the needed size at a fraction of it: quicker, with other pixels.
        augment: How it is changed, on the same grid; not at all where not given.
        seed: Decides every draw of ``augment``; not negative.

    Raises:
        MediaError: The picture cannot be used.

    Source: transformers' ``Qwen2VLImageProcessor``; equal to its ``pixel_values`` before rescaling and normalising,
    with one frame instead of the doubled one.
    """
    change = None if augment is None else augment.draw(seed)
    picture, grid = resized(image, spec, min_pixels, max_pixels, draft=draft, change=change)
    values = np.empty((grid[1] * grid[2], 3 * spec.patch_size**2), np.uint8)
    cut(picture, spec, values)
    return ImagePatches(values, grid)


def resized(
    image: Image,
    spec: VisionSpec,
    min_pixels: int,
    max_pixels: int,
    *,
    draft: bool = False,
    change: Change | None = None,
) -> tuple[Pillow.Image, tuple[int, int, int]]:
    """The first half of :func:`image_patches`: the picture at the size that the model is shown, and its grid."""
    from tuyi.vision.image import load_rgb, probe_image
    from tuyi.vision.resample import resample

    to_size = resample if change is None else change.resample

    def sized(width: int, height: int) -> tuple[tuple[int, int, int], tuple[int, int]]:
        grid = image_grid(width, height, spec, min_pixels, max_pixels)
        return grid, (grid[2] * spec.patch_size, grid[1] * spec.patch_size)

    if draft:
        info = probe_image(image)
        grid, size = sized(info.width, info.height)
        return to_size(load_rgb(image, size), size), grid
    picture = load_rgb(image)
    grid, size = sized(*picture.size)
    return to_size(picture, size), grid


def cut(picture: Pillow.Image, spec: VisionSpec, out: NDArray[np.uint8]) -> None:
    """The second half of :func:`image_patches`: rows of patches, written where they are wanted.

    Args:
        picture: RGB; sides are multiples of ``spec.factor``.
        spec: The model's vision tower.
        out: Contiguous, shape (P, 3 * patch_size ** 2).
    """
    side, merge = spec.patch_size, spec.merge_size
    h, w = picture.height // spec.factor, picture.width // spec.factor
    patches = out.reshape(h, w, merge, merge, 3, side, side)
    line = np.dtype(f"V{side}")  # lines of a patch are moved whole; numpy would move them byte by byte
    for channel, plane in enumerate(picture.split()):
        lines = np.frombuffer(plane.tobytes(), line).reshape(h, merge, side, w, merge)
        np.copyto(patches[:, :, :, :, channel].view(line)[..., 0], lines.transpose(0, 3, 1, 4, 2))


def patchify(frames_THWC: NDArray[np.uint8], patch_size: int, merge_size: int) -> NDArray[np.uint8]:
    """Rows of patches of the frames that share a temporal patch (one frame: T = 1), in one copy.

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
