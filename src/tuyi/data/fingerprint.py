"""Short hashes that tell whether two rows show the same picture or text."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tuyi.data.example import Example, Image, Text, Video
from tuyi.errors import MediaError

if TYPE_CHECKING:
    from tuyi.task import Task

__all__ = ["MediaDigests", "digest", "own_text_digest", "row_digest"]


def digest(data: bytes | str) -> int:
    """A 64-bit hash (BLAKE2b); two of a million different rows agree by chance once in 40 million times."""
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "big")


@dataclass
class MediaDigests:
    """Content hashes of pictures and videos; a file that is named often is read once."""

    _by_path: dict[int, int] = field(default_factory=dict)

    def of(self, media: Image | Video) -> int:
        """The hash of the encoded file.

        Raises:
            MediaError: The file cannot be read.
        """
        if isinstance(media.source, bytes):
            return digest(media.source)
        key = digest(str(media.source))
        if key not in self._by_path:
            self._by_path[key] = _file_digest(media.source)
        return self._by_path[key]


def _file_digest(file: Path) -> int:
    try:
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=8))
    except FileNotFoundError as error:
        raise MediaError(f"{file} does not exist") from error
    except OSError as error:
        raise MediaError(f"{file} cannot be read: {error.strerror or error}") from error
    return int.from_bytes(found.digest(), "big")


def own_text_digest(example: Example, task: Task | None) -> int | None:
    """The hash of what the row itself says, the task's wording left out; None where that is nothing.

    Rows of a picture task share their wording. So the text of a row with media counts only where the task can tell
    the row's own content from the wording around it.
    """
    parts = [part for turn in example.history for part in turn.parts]
    if task is not None and task.content is not None:
        parts += [part for turn in task.ask(example).turns for part in turn]
    elif example.images or example.videos:
        return None
    else:
        parts += example.content
    text = " ".join("".join(part.text for part in parts if isinstance(part, Text)).split())
    return digest(text) if text else None


def row_digest(example: Example, media: list[int]) -> int:
    """The hash of everything that the row shows: texts, and its media by their hashes."""
    waiting = iter(media)
    pieces = [
        part.text if isinstance(part, Text) else f"\0{next(waiting, 0)}\0"
        for turn in (*(turn.parts for turn in example.history), example.content)
        for part in turn
    ]
    return digest("\1".join(pieces))
