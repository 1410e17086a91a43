"""References to pictures and videos: from what a row says to a file, and to their places in the text."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from tuyi.data.example import Image, Part, Text, Video
from tuyi.data.formats.fields import Fields
from tuyi.errors import DataError

__all__ = ["IMAGE_MARK", "VIDEO_MARK", "MediaFolders", "joined", "placed", "put_in_place", "spell"]

IMAGE_MARK = "<image>"
VIDEO_MARK = "<video>"
_MARKS = re.compile(r"(<image>|<video>)")
_DATA_URL = re.compile(r"data:[^,]*;base64,", re.IGNORECASE)

Media: TypeAlias = Image | Video


@dataclass(frozen=True, slots=True)
class MediaFolders:
    """Where the media of a data file lie.

    Args:
        base: Folder of the data file.
        root: Folder to look in first, where the user named one.
        inner: Folder inside ``base`` where a bare file name is looked for first.
    """

    base: Path
    root: Path | None = None
    inner: str | None = None

    def path(self, name: str) -> Path:
        """The file behind a name; the likeliest place where no file is found."""
        first, *others = self._places(name)
        if others and not first.is_file():
            return next((place for place in others if place.is_file()), first)
        return first

    def _places(self, name: str) -> list[Path]:
        if Path(name).is_absolute():
            return [Path(name)]
        places = [self.base / name]
        if self.inner is not None:
            # A name with a folder in it says where it stands; a bare one means the usual folder.
            places.insert(1 if "/" in name else 0, self.base / self.inner / name)
        if self.root is not None:
            places = [self.root / name, *places]
        return places

    def images(self, fields: Fields, column: str) -> list[Image]:
        """The pictures that a column names."""
        return [Image(*self.find(fields, column, value)) for value in fields.references(column)]

    def videos(self, fields: Fields, column: str) -> list[Video]:
        """The videos that a column names."""
        return [Video(*self.find(fields, column, value)) for value in fields.references(column)]

    def find(self, fields: Fields, column: str, value: Any) -> tuple[Path | bytes, str]:
        """Source and name of one reference: name, ``data:`` URL, bytes, or object with ``path`` and ``bytes``."""
        if isinstance(value, dict):
            if isinstance(value.get("bytes"), bytes):
                return value["bytes"], str(value.get("path") or "")
            value = value.get("path") or value.get("url")
        if isinstance(value, bytes):
            return value, ""
        if not isinstance(value, str) or not value:
            raise fields.wrong_type(column, "names of files", value)
        if _DATA_URL.match(value):
            return _decode(fields, column, value), ""
        if value.startswith(("http://", "https://")):
            raise fields.bad("media", f"column {column!r}: expected a local file, found {value}; download it first")
        return self.path(value.removeprefix("file://")), value


def _decode(fields: Fields, column: str, url: str) -> bytes:
    try:
        return base64.b64decode(url.partition(",")[2], validate=True)
    except binascii.Error as error:
        raise fields.bad("media", f"column {column!r}: a data: URL that is not base64 ({error})") from error


def put_in_place(
    fields: Fields, texts: Sequence[str], images: Sequence[Image], videos: Sequence[Video]
) -> list[tuple[Part, ...]]:
    """Texts cut at their ``<image>`` and ``<video>`` marks, each mark become the next picture or video.

    Raises:
        BadRow: The marks are more or fewer than the media; both numbers are named.
    """
    waiting: dict[str, list[Media]] = {IMAGE_MARK: list(images), VIDEO_MARK: list(videos)}
    for mark, noun in ((IMAGE_MARK, "picture"), (VIDEO_MARK, "video")):
        marks, media = sum(text.count(mark) for text in texts), len(waiting[mark])
        if marks != media:
            raise fields.bad(
                "placeholder",
                f"{marks} {mark} in the text but {media} {noun}{'' if media == 1 else 's'}; "
                "expected one mark for each, in order",
            )
    return [tuple(placed(text, waiting)) for text in texts]


def placed(text: str, waiting: dict[str, list[Media]]) -> Iterator[Part]:
    """A text cut at the marks for which media wait; each mark takes the first that waits for it."""
    for piece in _MARKS.split(text):
        if piece in waiting:
            yield waiting[piece].pop(0)
        elif piece:
            yield Text(piece)


def joined(parts: Iterable[Part]) -> tuple[Part, ...]:
    """The same parts with neighbouring texts made one and empty ones gone."""
    whole: list[Part] = []
    for part in parts:
        if isinstance(part, Text) and whole and isinstance(whole[-1], Text):
            whole[-1] = Text(whole[-1].text + part.text)
        elif part != Text(""):
            whole.append(part)
    return tuple(whole)


def spell(parts: Iterable[Part]) -> str:
    """Parts as one text with ``<image>`` and ``<video>`` marks.

    Raises:
        DataError: The text itself contains such a mark, so that it could not be read back.
    """
    pieces = []
    for part in joined(parts):
        if isinstance(part, Text):
            if found := _MARKS.search(part.text):
                raise DataError(
                    f"the text itself contains {found[0]}, which this format would read back as a place for media; "
                    "write the messages format instead"
                )
            pieces.append(part.text)
        else:
            pieces.append(IMAGE_MARK if isinstance(part, Image) else VIDEO_MARK)
    return "".join(pieces)
