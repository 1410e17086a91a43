"""What ended answers leave in the cache, so that a talk which goes on, or one that begins alike, goes on from there.

Prompts are told apart by a chain of digests, one for each block of tokens: of the block, of its positions, of the
pictures that begin in it, and of all that is before it. A follow-up is found by the last digest that it has in common.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from tuyi.encode.encoded import Encoded
from tuyi.model.cache import Room
from tuyi.model.decode import Live, common_tokens
from tuyi.serve.jobs import Row

__all__ = ["Beginning", "Beginnings", "owned"]

_BLOCK = 32
"""Tokens of a block; less in common is not worth a copy."""


@dataclass(eq=False, slots=True)
class Beginning:
    """A row that has ended and stays in the cache.

    Args:
        live: It.
        positions: int32, shape (3, tokens): M-RoPE positions.
        marks: Digests of its blocks.
    """

    live: Live
    positions: NDArray[np.int32]
    marks: tuple[bytes, ...]

    def common(self, encoded: Encoded) -> int:
        """Tokens that a prompt begins with as it does, pictures and positions included; never the prompt's last."""
        length = common_tokens(self.live, encoded)
        differ = np.flatnonzero((self.positions[:, :length] != encoded.positions[:, :length]).any(0))
        if len(differ):
            length = int(differ[0])
            begins = [item.spans[0][0] for item in encoded.media if item.spans[0][0] < length < item.spans[-1][1]]
            length = min([length, *begins])
        return length


class Beginnings:
    """The rows that are kept; for one thread.

    Args:
        most: Tokens of all of them; the longest unused make room.
    """

    def __init__(self, most: int) -> None:
        self.most, self._held = most, 0
        self._all: OrderedDict[Beginning, None] = OrderedDict()
        self._by_mark: dict[bytes, Beginning] = {}

    def __contains__(self, one: Beginning) -> bool:
        return one in self._all

    @property
    def rooms(self) -> frozenset[Room]:
        """Where they lie."""
        return frozenset(one.live.room for one in self._all)

    def find(self, marks: Sequence[bytes]) -> Beginning | None:
        """The row with which the prompt of these digests has most in common."""
        for mark in reversed(marks):
            if (one := self._by_mark.get(mark)) is not None:
                self._all.move_to_end(one)
                return one
        return None

    def keep(self, live: Live, row: Row) -> list[Live]:
        """Keep a row that has ended.

        Args:
            live: It, in a room of its size.
            row: What it began with.

        Returns:
            Rows that need not be kept any longer, this one perhaps among them.
        """
        encoded, more = row.encoded, len(live) - len(row.encoded)
        place = int(encoded.positions[:, -1].max())
        behind = np.tile(np.arange(place + 1, place + 1 + max(0, more), dtype=np.int32), (3, 1))
        positions = np.concatenate([encoded.positions, behind], axis=1)[:, : len(live)]
        whole = len(encoded) // _BLOCK if more >= 0 else 0
        marks = _chain(np.asarray(live.ids, np.int32), positions, live.media, row.owner, list(row.marks[:whole]))
        if not marks or len(live) > self.most:
            return [live]
        one, known = Beginning(live, positions, tuple(marks)), frozenset(marks)
        before = {self._by_mark[mark] for mark in marks if mark in self._by_mark}
        covered = [old for old in before if old.marks[-1] in known]
        gone = [self._drop(old) for old in covered]
        self._all[one] = None
        self._held += len(live)
        self._by_mark.update(dict.fromkeys(marks, one))
        while self._held > self.most and (oldest := self.drop_oldest()) is not None:
            gone.append(oldest)
        return gone

    def drop_oldest(self) -> Live | None:
        """The row that was not used for longest, which is no longer kept; None where none is."""
        oldest = next(iter(self._all), None)
        return None if oldest is None else self._drop(oldest)

    def _drop(self, one: Beginning) -> Live:
        del self._all[one]
        self._held -= len(one.live)
        for mark in one.marks:
            if self._by_mark.get(mark) is one:
                del self._by_mark[mark]
        return one.live


def owned(row: Row, owner: bytes) -> Row:
    """A row as its owner's, and with its digests: what is kept of it serves nobody else."""
    encoded = row.encoded
    if owner:
        media = (item if item.key is None else replace(item, key=_own(item.key, owner)) for item in encoded.media)
        encoded = replace(encoded, media=tuple(media))
    if row.script is None:
        return replace(row, encoded=encoded, owner=owner)
    begins = tuple((item.spans[0][0], item.key) for item in encoded.media)
    marks = _chain(encoded.ids, encoded.positions, begins, owner, [])
    return replace(row, encoded=encoded, owner=owner, marks=tuple(marks))


def _own(key: bytes, owner: bytes) -> bytes:
    return blake2b(key, digest_size=16, key=owner[:64]).digest()


def _chain(
    ids: NDArray[np.int32], positions: NDArray[np.int32], media: Sequence[tuple[int, bytes | None]], owner: bytes,
    marks: list[bytes],
) -> list[bytes]:  # fmt: skip
    """Go on with the digests; a picture without a key ends them."""
    mark = marks[-1] if marks else owner
    for begin in range(len(marks) * _BLOCK, len(ids) - _BLOCK + 1, _BLOCK):
        keys = [key for at, key in media if begin <= at < begin + _BLOCK]
        if None in keys:
            break
        digest = blake2b(mark, digest_size=16)
        digest.update(ids[begin : begin + _BLOCK].tobytes())
        digest.update(positions[:, begin : begin + _BLOCK].tobytes())
        for key in keys:
            digest.update(key or b"")
        marks.append(mark := digest.digest())
    return marks
