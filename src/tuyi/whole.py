"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tuyi.errors import OutputError

__all__ = ["output_errors", "write_whole"]


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Failures of the file system as an :class:`OutputError` that names ``path``."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error


def write_whole(path: Path, text: str | Iterable[str], encoding: str = "utf-8") -> None:
    """Write a text file beside its place and move it there, so that a kill or a full disk leaves the old one intact.

    Args:
        path: The file; folders on the way are made.
        text: What it will hold, line ends as they are. Pieces are written as they come; an error among them is passed
            on and nothing of the new file stays.
        encoding: ``utf-8``, or ``utf-8-sig`` for spreadsheets.

    Raises:
        OutputError: The place cannot be written.
    """
    # the process id: of two runs that write one file at a time, each moves a file of its own
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, part, [text] if isinstance(text, str) else text, encoding)
        with output_errors(path):
            part.replace(path)
    finally:
        with suppress(OSError):
            part.unlink()


def _write(path: Path, part: Path, pieces: Iterable[str], encoding: str) -> None:
    """Write ``part`` down to the disk; a failure to read the pieces is not taken for one to write them."""
    with output_errors(path):
        file = part.open("w", encoding=encoding, newline="")
    try:
        for piece in pieces:
            with output_errors(path):
                file.write(piece)
        with output_errors(path):
            file.flush()
            os.fsync(file.fileno())
    finally:
        # closing a file on a full disk tries to write again
        with output_errors(path):
            file.close()
