"""One picture made harder to see, in ways that are already drawn."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image as Pillow

__all__ = ["Change"]

_LONGEST_JPEG = 65_500
"""Pixels a side that libjpeg writes."""


@dataclass(frozen=True, slots=True)
class Change:
    """What happens to one picture, in the order of the fields; apart from the settings, so that workers import little.

    Args:
        scale: Factor to which it is shrunk before it is brought to its size.
        blur: Gaussian radius in pixels of the resized picture.
        brightness: Share of the way to white, or to black where negative. No factor: it would burn out what is nearly
            white, such as the grey text of a screenshot.
        contrast: Factor on the distance from the mean grey.
        jpeg_quality: Quality at which it is recompressed, 1–100. A side over 65,500 pixels, which no JPEG can have,
            leaves the picture as it is.
    """

    scale: float = 1.0
    blur: float = 0.0
    brightness: float = 0.0
    contrast: float = 1.0
    jpeg_quality: int | None = None

    def resample(self, picture: Pillow.Image, size: tuple[int, int]) -> Pillow.Image:
        """As :func:`~tuyi.vision.resample.resample`, and changed.

        Args:
            picture: Mode RGB.
            size: (width, height) in pixels.
        """
        from PIL import Image as Pillow
        from PIL import ImageEnhance, ImageFilter

        from tuyi.vision.resample import resample

        if self.scale < 1:
            # of what the model would see: a share of a large photo can still hold more than that
            width, height = (max(1, round(min(sides) * self.scale)) for sides in zip(picture.size, size, strict=True))
            picture = resample(picture, (width, height))
        picture = resample(picture, size)
        if self.blur:
            picture = picture.filter(ImageFilter.GaussianBlur(self.blur))
        if self.brightness:
            end = Pillow.new("RGB", size, "white" if self.brightness > 0 else "black")
            picture = Pillow.blend(picture, end, abs(self.brightness))
        if self.contrast != 1:
            picture = ImageEnhance.Contrast(picture).enhance(self.contrast)
        if self.jpeg_quality is not None and max(size) <= _LONGEST_JPEG:
            picture = _recompressed(picture, self.jpeg_quality)
        return picture


def _recompressed(picture: Pillow.Image, quality: int) -> Pillow.Image:
    from PIL import Image as Pillow

    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    with Pillow.open(file, formats=["JPEG"]) as again:
        again.load()
        return again
