"""Pictures and videos of requests, each read once however often it is shown."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, TypeAlias

from tuyi.data.example import Image, Video
from tuyi.encode.encoder import Encoder, Look, video_budget
from tuyi.serve.videos import VideoReaders
from tuyi.task.catalog import TaskSet
from tuyi.task.task import Budget
from tuyi.vision.spec import ImagePatches, VideoPatches, VisionSpec
from tuyi.vision.video_file import VideoInfo

__all__ = ["Seeing", "Seen"]

Patches: TypeAlias = ImagePatches | VideoPatches


class Seen:
    """Patches of pictures and videos that were shown lately; for many threads.

    Args:
        most: Bytes of all of them; the longest unused make room.
    """

    def __init__(self, most: int) -> None:
        self._most, self._held = most, 0
        self._patches: OrderedDict[tuple[Any, ...], Patches] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[Any, ...]) -> Patches | None:
        """What was kept, if it still is."""
        with self._lock:
            if (found := self._patches.get(key)) is not None:
                self._patches.move_to_end(key)
            return found

    def keep(self, key: tuple[Any, ...], patches: Patches) -> None:
        """Keep these."""
        with self._lock:
            if key in self._patches or patches.values.nbytes > self._most:
                return
            self._patches[key] = patches
            self._held += patches.values.nbytes
            while self._held > self._most:
                _, gone = self._patches.popitem(last=False)
                self._held -= gone.values.nbytes


class Seeing(Encoder):
    """An encoder of one request after another that has videos read apart, and knows what was shown before.

    Args:
        tokenizer, spec, tasks: As for :class:`~tuyi.encode.encoder.Encoder`.
        readers: Who reads videos.
        seen: What was shown before.
    """

    def __init__(self, tokenizer: Any, spec: VisionSpec, tasks: TaskSet, readers: VideoReaders, seen: Seen) -> None:
        super().__init__(tokenizer, spec, tasks)
        self._readers, self._seen = readers, seen
        self._owner, self._is_gone = b"", _stays
        self._infos: dict[Video, VideoInfo] = {}
        self._digests: dict[Image | Video, bytes] = {}

    def of(self, owner: bytes, is_gone: Callable[[], bool]) -> Seeing:
        """The encoder of one request.

        Args:
            owner: Of the request; what was shown to others is not known to it.
            is_gone: Whether nobody waits for it any more.
        """
        one = copy.copy(self)
        one._owner, one._is_gone = owner, is_gone
        one._infos, one._digests = {}, {}
        return one

    def _grid(self, part: Image | Video, budget: Budget, max_pixels: int) -> tuple[int, int, int]:
        if (found := self._seen.get(self._key(part, budget, max_pixels))) is not None:
            return found.grid
        if isinstance(part, Image):
            return super()._grid(part, budget, max_pixels)
        from tuyi.vision.video import video_grid

        if part not in self._infos:
            self._infos[part] = self._readers.look(part, self._is_gone)
        return video_grid(self._infos[part], self.spec, video_budget(budget, max_pixels))

    def _patches(self, part: Image | Video, budget: Budget, max_pixels: int, look: Look | None = None) -> Patches:
        key = self._key(part, budget, max_pixels)
        if (found := self._seen.get(key)) is not None:
            return found
        if isinstance(part, Image):
            patches = super()._patches(part, budget, max_pixels, look)
        else:
            patches = self._readers.cut(part, self.spec, video_budget(budget, max_pixels), self._is_gone)
        self._seen.keep(key, patches)
        return patches

    def _key(self, part: Image | Video, budget: Budget, max_pixels: int) -> tuple[Any, ...]:
        if part not in self._digests:
            assert isinstance(part.source, bytes), "what requests show is bytes"
            self._digests[part] = blake2b(part.source, digest_size=32).digest()
        return self._owner, type(part), self._digests[part], budget, max_pixels


def _stays() -> bool:
    return False
