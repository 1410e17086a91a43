"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from tuyi.errors import OutputError

__all__ = ["write_whole"]


def write_whole(path: Path, text: str) -> None:
    """Write a text file beside its place and move it there, so that a kill or a full disk leaves the old one intact.

    Raises:
        OutputError: The place cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
