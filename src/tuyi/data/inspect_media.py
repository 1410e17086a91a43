"""Opening every picture and video once, several at a time, while rows stream by."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tuyi.data.example import Example, Image, Video
from tuyi.data.fingerprint import MediaDigests, digest
from tuyi.data.problem import Problem
from tuyi.errors import MediaError

__all__ = ["Inspected", "MediaInspector", "inspect_rows"]

_WAITING_ROWS = 8


@dataclass(frozen=True, slots=True)
class Inspected:
    """One picture or video.

    Args:
        digest: Hash of the encoded file; None where it cannot be read.
        error: Why it cannot be used; None where it can.
    """

    digest: int | None
    error: str | None


@dataclass
class MediaInspector:
    """Hashes media and, where asked, decodes them in full; remembers files by path.

    Args:
        decode: Whether to open each file as a picture or video, beyond hashing it.
    """

    decode: bool
    _digests: MediaDigests = field(default_factory=MediaDigests)
    _by_path: dict[int, Inspected] = field(default_factory=dict)

    def of_row(self, item: Example | Problem) -> list[Inspected]:
        """Findings for each picture or video of a row, in order."""
        if isinstance(item, Problem):
            return []
        return [self.of(part) for part in item.parts if isinstance(part, Image | Video)]

    def of(self, media: Image | Video) -> Inspected:
        """Findings for one picture or video."""
        if isinstance(media.source, bytes):
            return self._inspect(media)
        key = digest(type(media).__name__ + str(media.source))
        if key not in self._by_path:
            self._by_path[key] = self._inspect(media)
        return self._by_path[key]

    def _inspect(self, media: Image | Video) -> Inspected:
        found: int | None = None
        try:
            found = self._digests.of(media)
            if self.decode:
                _probe(media)
        except MediaError as error:
            return Inspected(found, error.message)
        return Inspected(found, None)


def _probe(media: Image | Video) -> None:
    if isinstance(media, Image):
        from tuyi.vision.image import probe_image

        probe_image(media)
    else:
        from tuyi.vision import probe_video

        probe_video(media)


def inspect_rows(
    items: Iterable[Example | Problem], inspector: MediaInspector, workers: int
) -> Iterator[tuple[Example | Problem, list[Inspected]]]:
    """Rows with the findings for their media, in order; a few rows ahead are worked on at the same time."""
    from concurrent.futures import Future, ThreadPoolExecutor

    waiting: deque[tuple[Example | Problem, Future[list[Inspected]]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for item in items:
            waiting.append((item, pool.submit(inspector.of_row, item)))
            if len(waiting) >= _WAITING_ROWS * workers:
                first, found = waiting.popleft()
                yield first, found.result()
        for first, found in waiting:
            yield first, found.result()
