"""Rows that show the same: equal or nearly equal media, and texts that differ in form alone."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tuyi.data.example import Example, Image, Text, Video
from tuyi.data.fingerprint import MediaDigests, digest
from tuyi.errors import MediaError
from tuyi.task.labels import fold

if TYPE_CHECKING:
    from tuyi.task.catalog import TaskSet

__all__ = ["alike", "merge_groups", "twin_groups"]

SIDE = 32
"""Pictures are compared as grey ones of this many pixels a side."""
MOST = 16
"""Grey levels of 256 by which no pixel of nearly equal pictures may differ; saving a JPEG again changes far fewer."""
_CHUNK = 4096


def twin_groups(
    rows: Iterable[Example], tasks: TaskSet, digests: MediaDigests, near_pictures: bool = True
) -> list[list[int]]:
    """Rows of one task that show the same, as lists of two or more row numbers.

    Texts may differ in width, case, spaces and punctuation. Pictures may have been saved, scaled or compressed again.

    Args:
        rows: The rows; gone through once, with near pictures twice.
        tasks: Tells rows' tasks, and each row's own words from its task's wording.
        digests: Hashes of media that are known already.
        near_pictures: Whether pictures are decoded and compared; else only equal files are equal.

    Raises:
        MediaError: A picture or video cannot be read.
    """
    same = _same_pictures(rows, digests) if near_pictures else {}
    found: defaultdict[int, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        task = tasks.of(row)
        parts = [part for turn in row.history for part in turn.parts]
        parts += [part for turn in task.ask(row).turns for part in turn]
        said = "".join(_plain(part.text) for part in parts if isinstance(part, Text))
        media = [digests.of(part) for part in parts if isinstance(part, Image | Video)]
        found[digest(f"{task.name}\0{said}\0{[same.get(one, one) for one in media]}")].append(number)
    return [numbers for numbers in found.values() if len(numbers) > 1]


def merge_groups(groups: Sequence[int], twins: Iterable[Sequence[int]]) -> list[int]:
    """Groups of rows that belong together, joined where a row of one is the twin of a row of another.

    Args:
        groups: A number for each row that those share which belong together.
        twins: Lists of rows that belong together too.
    """
    joined = {group: group for group in groups}

    def root(group: int) -> int:
        while joined[group] != group:
            joined[group] = joined[joined[group]]
            group = joined[group]
        return group

    for rows in twins:
        for row in rows[1:]:
            joined[root(groups[row])] = root(groups[rows[0]])
    return [root(group) for group in groups]


def _plain(text: str) -> str:
    """Letters and digits alone."""
    return "".join(sign for sign in fold(text) if unicodedata.category(sign)[0] in "LN")


def _same_pictures(rows: Iterable[Example], digests: MediaDigests) -> Mapping[int, int]:
    """For the hash of each picture that another nearly equals, one hash that they share."""
    small: dict[int, NDArray[np.uint8]] = {}
    shapes: list[float] = []
    for row in rows:
        for image in row.images:
            key = digests.of(image)
            if key in small:
                continue
            try:
                pixels, shape = _grey(image)
            except MediaError as error:
                error.at(row.place)
                raise
            small[key] = pixels
            shapes.append(shape)
    if not small:
        return {}
    keys = list(small)
    first_P = alike(np.stack(list(small.values())), np.array(shapes))
    return {key: keys[first] for key, first in zip(keys, first_P.tolist())}


def _grey(image: Image) -> tuple[NDArray[np.uint8], float]:
    """A picture as SIDE * SIDE grey levels, and its width by its height."""
    from PIL import Image as Pillow

    from tuyi.vision.image import load_rgb

    picture = load_rgb(image, at_least=(2 * SIDE, 2 * SIDE))
    grey = picture.convert("L").resize((SIDE, SIDE), Pillow.Resampling.BOX)
    return np.asarray(grey, dtype=np.uint8).reshape(-1), picture.width / picture.height


def alike(pixels_PS: NDArray[np.uint8], shapes_P: NDArray[np.float64]) -> NDArray[np.int64]:
    """For each picture the number of one that stands for it and for all that nearly equal it.

    Two pictures nearly equal each other where no pixel differs by more than :data:`MOST` grey levels and their shapes
    by no more than a fiftieth. Only pictures of about the same brightness are compared.

    Args:
        pixels_PS: Grey levels of P small pictures.
        shapes_P: Width by height of each picture as it was.
    """
    means_P = pixels_PS.mean(axis=1)
    order_P = np.argsort(means_P, kind="stable")
    sorted_P, pixels_PS, shapes_P = means_P[order_P], pixels_PS[order_P].astype(np.int16), shapes_P[order_P]
    # equal pictures differ in brightness by far less than in a single pixel
    ends_P = np.searchsorted(sorted_P, sorted_P + MOST / 8, side="right")
    groups = list(range(len(order_P)))
    pairs: list[tuple[int, int]] = []
    for at, end in enumerate(ends_P.tolist()):
        for start in range(at + 1, end, _CHUNK):
            part = slice(start, min(end, start + _CHUNK))
            near = np.abs(shapes_P[part] / shapes_P[at] - 1) <= 0.02
            near &= np.abs(pixels_PS[part] - pixels_PS[at]).max(axis=1) <= MOST
            pairs += [(at, start + int(other)) for other in np.flatnonzero(near)]
    first_P = np.empty(len(order_P), dtype=np.int64)
    first_P[order_P] = order_P[merge_groups(groups, pairs)]
    return first_P
