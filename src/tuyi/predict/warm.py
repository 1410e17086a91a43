"""A first pass over made-up rows, so that compiling and choosing kernels is over before rows are timed."""

from __future__ import annotations

import time

import numpy as np

from tuyi.encode.encoded import Encoded, Media
from tuyi.encode.encoder import LabelTokens
from tuyi.model.load import Model
from tuyi.predict.scoring import score_labels
from tuyi.vision.spec import ImagePatches

__all__ = ["warm_up"]

_SIDES = ((8, 12, 6), (10, 16, 4), (14, 10, 8))
"""Patches a side of the pictures of each pass, and rows: three passes, as torch compiles some lengths anew once."""


def warm_up(model: Model) -> float:
    """Let a few small packs pass a model.

    Returns:
        Seconds.
    """
    began = time.perf_counter()
    labels = LabelTokens(("one", "two", "three"), ((5, 6), (7, 8, 6), (5, 7, 9, 6)))
    for h, w, rows in _SIDES:
        score_labels(model, [_row(model, h, w + 2 * row, row) for row in range(rows)], [labels] * rows)
    return time.perf_counter() - began


def _row(model: Model, h: int, w: int, seed: int) -> Encoded:
    """A row of sixteen text tokens, one picture and four more."""
    values = np.random.default_rng(seed).integers(0, 256, (h * w, 3 * model.spec.patch_size**2), np.uint8)
    visual = h * w // model.spec.merge_size**2
    ids = np.full(16 + visual + 4, 10, np.int32)
    places = np.arange(len(ids), dtype=np.int32)
    media = (Media(ImagePatches(values, (1, h, w)), ((16, 16 + visual),)),)
    return Encoded(f"{seed}", "", ids, np.zeros(len(ids), bool), np.stack([places] * 3), media)
