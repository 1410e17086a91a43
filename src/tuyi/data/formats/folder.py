"""A folder per label with its pictures and videos inside, or one folder of unlabelled ones; a row's id is its path."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from tuyi.data.example import Example, Image, Video
from tuyi.data.options import ReadOptions
from tuyi.data.problem import Problem
from tuyi.errors import FormatError, Place

__all__ = ["IMAGE_SUFFIXES", "VIDEO_SUFFIXES", "scan_folder"]

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jfif", ".ppm", ".pgm", ".avif"}
)
VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"})


def scan_folder(root: Path, options: ReadOptions) -> Iterator[Example | Problem]:
    """The pictures of every label, sorted by label and name; files that are neither are named, hidden ones are not.

    A folder without folders holds rows without labels.

    Raises:
        FormatError: Neither pictures nor label folders, or folders of folders (``root/train`` or the like is meant).
    """
    try:
        labels = _visible(root)
    except OSError as error:
        raise FormatError(f"the folder cannot be read: {error.strerror}", Place(root)) from error
    folders = [item for item in labels if item.is_dir()]
    if not folders:
        if not any(item.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES for item in labels):
            raise FormatError(
                "expected pictures, or a folder per label with pictures inside, found neither", Place(root)
            )
        yield from _rows(root, [(file, None) for file in labels])
        return
    _refuse_nested(root, folders)
    for item in labels:
        if not item.is_dir():
            yield _strange(item, "a file beside the label folders")
    yield from _rows(root, ((file, folder.name) for folder in folders for file in _visible(folder)))


def _rows(root: Path, files: Iterable[tuple[Path, str | None]]) -> Iterator[Example | Problem]:
    """Rows of files with their labels."""
    row = 0
    for file, label in files:
        suffix = file.suffix.lower()
        if suffix not in IMAGE_SUFFIXES and suffix not in VIDEO_SUFFIXES:
            yield _strange(file, "neither a picture nor a video")
            continue
        row += 1
        name = file.relative_to(root).as_posix()
        media = Image(file, name) if suffix in IMAGE_SUFFIXES else Video(file, name)
        yield Example(id=name, content=(media,), label=label, place=Place(root, row, name))


def _visible(folder: Path) -> list[Path]:
    return sorted(item for item in folder.iterdir() if not item.name.startswith(".") and item.name != "Thumbs.db")


def _refuse_nested(root: Path, folders: list[Path]) -> None:
    for folder in folders:
        inner = next((item for item in _visible(folder) if item.is_dir()), None)
        if inner is not None:
            parts = ", ".join(str(item) for item in folders[:3])
            raise FormatError(
                f"expected pictures in {folder.name}/, found the folder {inner.name}/; "
                f"point at the folder that holds the label folders, perhaps {parts}",
                Place(root),
            )


def _strange(file: Path, what: str) -> Problem:
    return Problem("file", f"{what}, left out", Place(file), "warning")
