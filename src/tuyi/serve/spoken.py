"""Text as it is told to a client while it is written: whole characters, nothing that could still become a stop."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

__all__ = ["Spoken"]


class Spoken:
    """The text of an answer, token by token.

    Args:
        stop: Texts that end it, and are not part of it.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop = stop
        self._hold = max((len(one) for one in stop), default=1) - 1
        self._decode = codecs.getincrementaldecoder("utf-8")("strict").decode
        self._told = 0
        self.text = ""
        self.is_stopped = False

    def add(self, data: bytes) -> None:
        """Go on with the bytes of tokens, valid UTF-8 together with what follows."""
        self.add_text(self._decode(data))

    def add_text(self, signs: str) -> None:
        """Go on with whole characters."""
        begin = max(0, len(self.text) - self._hold)
        self.text += signs
        found = [at for at in (self.text.find(one, begin) for one in self._stop) if at >= 0]
        if found:
            self.text, self.is_stopped = self.text[: min(found)], True

    def new(self, *, is_over: bool = False) -> str:
        """What can be told since the last time."""
        end = len(self.text) if is_over or self.is_stopped else max(self._told, len(self.text) - self._hold)
        told, self._told = self.text[self._told : end], end
        return told
