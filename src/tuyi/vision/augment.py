"""How pictures are made harder while a model learns from them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from tuyi.config import Settings
from tuyi.vision.change import Change

__all__ = ["Augment"]

_Quality = Annotated[int, Field(ge=1, le=100)]


class Augment(Settings):
    """Changes that a label survives, each drawn anew for every picture and pass; off where not given.

    The number of patches never changes.
    """

    jpeg_quality: tuple[_Quality, _Quality] | None = None
    """Lowest and highest quality at which the picture is recompressed as JPEG, 1–100."""
    blur: float | None = Field(default=None, gt=0, le=100)
    """Largest Gaussian radius, in pixels of the picture that the model is shown."""
    scale: float | None = Field(default=None, gt=0, lt=1)
    """Smallest factor to which the picture is shrunk before it is brought to the model's size: detail is lost."""
    brightness: float | None = Field(default=None, gt=0, lt=1)
    """Largest share of the way to white or to black."""
    contrast: float | None = Field(default=None, gt=0, lt=1)
    """Largest relative change of contrast, either way."""
    share: float = Field(default=1.0, gt=0, le=1)
    """Share of the pictures that are changed at all."""

    @field_validator("jpeg_quality")
    @classmethod
    def _rising(cls, range_: tuple[int, int] | None) -> tuple[int, int] | None:
        if range_ is not None and range_[0] > range_[1]:
            raise ValueError(f"expected the lowest quality first, found {list(range_)}; write {[range_[1], range_[0]]}")
        return range_

    def draw(self, seed: int) -> Change | None:
        """What happens to one picture: evenly drawn from each range; None where it stays as it is.

        Args:
            seed: Not negative; decides everything. One option's draw does not depend on which others are on.
        """
        import numpy as np

        chance, scale, blur, brightness, contrast, quality = np.random.default_rng(seed).random(6).tolist()
        if chance >= self.share:
            return None
        low, high = self.jpeg_quality or (0, 0)
        return Change(
            scale=1 - (1 - (self.scale or 1)) * scale,
            blur=(self.blur or 0) * blur,
            brightness=(self.brightness or 0) * (2 * brightness - 1),
            contrast=1 + (self.contrast or 0) * (2 * contrast - 1),
            jpeg_quality=low + int((high + 1 - low) * quality) if self.jpeg_quality else None,
        )
