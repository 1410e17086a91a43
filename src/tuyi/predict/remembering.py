"""Encoding the same conversation again and again, each time a little longer."""

from __future__ import annotations

import copy
from typing import Any

from tuyi.data.example import Example, Image, Part, Video
from tuyi.encode.encoder import Encoder
from tuyi.model.load import Frontend
from tuyi.task.catalog import TaskSet
from tuyi.task.task import Budget
from tuyi.vision.spec import ImagePatches, VideoPatches

__all__ = ["RememberingEncoder"]


class RememberingEncoder(Encoder):
    """An encoder that reads each picture and video once, and shows those that had to shrink at that size ever after.

    A talk encodes all that was said with every question; only what is new is read.
    """

    def __init__(self, frontend: Frontend, tasks: TaskSet) -> None:
        super().__init__(frontend.tokenizer, frontend.spec, tasks)
        self.most_pixels: dict[Image | Video, int] = {}
        self._read: dict[tuple[Image | Video, int], ImagePatches | VideoPatches] = {}
        self._sizes: dict[tuple[Image | Video, int], tuple[int, int, int]] = {}

    def forget_but(self, kept: tuple[Part, ...]) -> None:
        """Forget pictures and videos that are not among these parts."""
        for found in (self._read, self._sizes):
            for key in [key for key in found if key[0] not in kept]:
                del found[key]
        self.most_pixels = {part: most for part, most in self.most_pixels.items() if part in kept}

    def shrunk(self, example: Example, tasks: TaskSet) -> int | None:
        """Pixels that a picture of a row may have to fit the budget of other tasks; None where it fits as it is."""
        smaller = copy.copy(self)
        smaller.tasks = tasks
        pixels: int | None = smaller.encode(example, labelled=False).notes.get("shrunk_images")
        return pixels

    def tokens_of(self, part: Image | Video, budget: Budget) -> int:
        """Visual tokens of a picture or video, read and decoded."""
        t, h, w = self._patches(part, budget, budget.max_pixels).grid
        return t * h * w // self.spec.merge_size**2

    def _grid(self, part: Image | Video, budget: Budget, max_pixels: int) -> tuple[int, int, int]:
        key = part, min(max_pixels, self.most_pixels.get(part, max_pixels))
        if key in self._read:
            return self._read[key].grid
        if key not in self._sizes:
            self._sizes[key] = super()._grid(part, budget, key[1])
        return self._sizes[key]

    def _patches(
        self, part: Image | Video, budget: Budget, max_pixels: int, look: Any = None
    ) -> ImagePatches | VideoPatches:
        key = part, min(max_pixels, self.most_pixels.get(part, max_pixels))
        if key not in self._read:
            self._read[key] = super()._patches(part, budget, key[1], look)
        return self._read[key]
