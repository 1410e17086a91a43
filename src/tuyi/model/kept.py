"""Visual features that are kept from pass to pass, so that a picture that comes again passes the tower once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Protocol

from torch import Tensor

__all__ = ["Kept", "Plan", "Store"]


class Store(Protocol):
    """Features by key, as a pass takes and gives them."""

    def __getitem__(self, key: bytes, /) -> Sequence[Tensor]: ...

    def keep(self, key: bytes | None, levels: Sequence[Tensor]) -> None:
        """Keep a picture's features, level by level, where it has a key."""


class Plan:
    """Which features will be there when a pack runs, known when it is made: packs run in the order they are made in.

    Args:
        features: Most visual tokens whose features are kept; the longest unused make room.
    """

    def __init__(self, features: int) -> None:
        self._most = features
        self._held = 0
        self._keys: OrderedDict[bytes, int] = OrderedDict()

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._keys)

    def use(self, keys: Sequence[tuple[bytes, int]]) -> None:
        """A pack uses these, with their numbers of features, all of which are there when it is through."""
        for key, count in keys:
            self._held += 0 if key in self._keys else count
            self._keys[key] = count
            self._keys.move_to_end(key)
        while self._held > self._most:
            _, count = self._keys.popitem(last=False)
            self._held -= count

    def clear(self) -> None:
        """Forget all."""
        self._keys.clear()
        self._held = 0


class Kept(dict[bytes, Sequence[Tensor]]):
    """The features themselves, level by level, as the plan says."""

    def keep(self, key: bytes | None, levels: Sequence[Tensor]) -> None:
        """Keep a picture's features; a copy, since they are part of a pack's."""
        if key is not None:
            self[key] = [level.clone() for level in levels]

    def drop_but(self, keys: frozenset[bytes]) -> None:
        """Drop what the plan no longer has once a pack is through."""
        for key in self.keys() - keys:
            del self[key]
