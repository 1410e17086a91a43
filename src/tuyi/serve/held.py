"""What requests hold of the memory."""

from __future__ import annotations

from tuyi.serve.refusals import RefusalError

__all__ = ["Held"]


class Held:
    """Bytes that requests hold together.

    Args:
        most: Most of them at a time.
    """

    def __init__(self, most: int) -> None:
        self._most, self._bytes = most, 0

    def take(self, size: int) -> None:
        """Hold so many more.

        Raises:
            RefusalError: Too many are held.
        """
        if self._bytes + size > self._most:
            raise RefusalError(429, "too much is being sent at once; try again later", code="busy", retry_after=1)
        self._bytes += size

    def give_back(self, size: int) -> None:
        """Hold so many less."""
        self._bytes -= size
