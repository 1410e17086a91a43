"""A worker of the picture pool: pictures in, patches into shared memory.

It talks over one connection. For each :class:`Order` it answers the grid, or a text where the picture cannot be used;
is told where in the shared memory the patches belong (an offset, or None: send them); writes them; and says so. It
ends when the connection does, so that it never outlives the process that started it.
"""

from __future__ import annotations

import mmap
import signal
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from tuyi.errors import MediaError
from tuyi.vision.patches import cut, resized
from tuyi.vision.spec import VisionSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tuyi.data.example import Image
    from tuyi.vision.change import Change

__all__ = ["Order", "main"]


@dataclass(frozen=True, slots=True)
class Order:
    """One picture to be cut; it stands in for ``Image``, whose room would take longer to import than all the rest.

    Args:
        source: Path of the file, or the encoded file itself.
        name: How errors call the picture.
        spec: The model's vision tower.
        min_pixels, max_pixels: Smallest and largest area of the resized picture.
        draft: As for :func:`~tuyi.vision.patches.image_patches`.
        change: What an augmentation drew for it.
    """

    source: Path | bytes
    name: str
    spec: VisionSpec
    min_pixels: int
    max_pixels: int
    draft: bool
    change: Change | None = None

    def __str__(self) -> str:
        return self.name


def main() -> None:
    """Serve until the other side is gone; the command line names the descriptors of connection and memory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    connection, memory_fd = Connection(int(sys.argv[1])), int(sys.argv[2])
    memory = np.frombuffer(mmap.mmap(memory_fd, 0), np.uint8)
    try:
        while True:
            _serve(connection, connection.recv(), memory)
    except (EOFError, ConnectionError):
        return


def _serve(connection: Connection, order: Order, memory: NDArray[np.uint8]) -> None:
    try:
        image = cast("Image", order)
        picture, grid = resized(
            image, order.spec, order.min_pixels, order.max_pixels, draft=order.draft, change=order.change
        )
    except MediaError as error:
        connection.send(error.message)
        return
    connection.send(grid)
    size = 3 * picture.width * picture.height
    offset: int | None = connection.recv()
    out = np.empty(size, np.uint8) if offset is None else memory[offset : offset + size]
    cut(picture, order.spec, out)
    if offset is None:
        connection.send_bytes(out.data)
    else:
        connection.send(True)
