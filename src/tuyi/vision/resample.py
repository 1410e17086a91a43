"""A picture at another size, as transformers' default image processor resizes it, with or without SIMD."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

import PIL
from PIL import Image as Pillow

from tuyi.vision.image import MAX_PICTURE_PIXELS

__all__ = ["resample", "resampler"]

_KNOWN_PILLOW = (11, 12, 13)
"""cykooz_resizer reads the C structs of Pillow's pictures, which another major version may lay out differently."""


def resample(picture: Pillow.Image, size: tuple[int, int]) -> Pillow.Image:
    """An RGB picture at another size: bicubic (a = -0.5) with antialiasing on uint8, first across, then down.

    The order matters wherever the first pass overshoots and is clipped: the other one differs by up to 28/255, and
    Pillow takes one or the other, by version and shape. Ours is torchvision's: with ``cykooz_resizer`` the values are
    the same to the bit, with Pillow alone 99 % are and the others differ by 1 or 2 of 255.

    Args:
        picture: Mode RGB.
        size: (width, height) in pixels.

    Source: torchvision's ``resize`` on uint8, which transformers' ``Qwen2VLImageProcessor`` calls.
    """
    across = (size[0], picture.height)
    if across[0] * across[1] > MAX_PICTURE_PIXELS:  # a line of pixels, which transformers refuses
        across = (picture.width, size[1])
    for step in (across, size):
        if picture.size != step:
            picture = _resized(picture, step)
    return picture


def resampler() -> str:
    """What resizes here, for people: library, version and the CPU instructions it uses."""
    cykooz = _cykooz()
    if cykooz is None:
        return f"Pillow {PIL.__version__}"
    from importlib.metadata import version

    return f"cykooz_resizer {version('cykooz_resizer')} ({cykooz.Resizer().cpu_extensions.name})"


@cache
def _cykooz() -> Any | None:
    if int(PIL.__version__.split(".")[0]) not in _KNOWN_PILLOW:
        return None
    try:
        return import_module("cykooz_resizer")
    except ImportError:
        return None


def _resized(picture: Pillow.Image, size: tuple[int, int]) -> Pillow.Image:
    cykooz = _cykooz()
    if cykooz is None:
        return picture.resize(size, Pillow.Resampling.BICUBIC)
    result = Pillow.new("RGB", size, None)
    cubic = cykooz.ResizeAlg.convolution(cykooz.FilterType.catmull_rom)
    # a resizer serves one thread at a time, and a new one costs a microsecond
    cykooz.Resizer().resize_pil(picture, result, cykooz.ResizeOptions(resize_alg=cubic, use_alpha=False))
    return result
