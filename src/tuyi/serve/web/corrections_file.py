"""A corrections file that is written decision by decision, and stays whole whenever the server ends."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from tuyi.distill.corrections import COLUMNS, Written, decided, read_written
from tuyi.errors import FormatError, OutputError, Place
from tuyi.whole import write_whole

__all__ = ["CorrectionsFile"]


class CorrectionsFile:
    """The lines of a corrections file; what nobody decides about here stays as it is, further columns too.

    Not safe for threads by itself: whoever owns it holds a lock.

    Args:
        path: The file; made with the first decision where it is not there.

    Raises:
        FormatError: The file is there and is no corrections file; it is left alone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._names: list[str] = list(COLUMNS)
        self._lines: dict[str, dict[str, str]] = {}
        self._stamp: tuple[int, int] | None = None
        self._read()

    def __contains__(self, id: str) -> bool:
        return id in self._lines

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def ids(self) -> list[str]:
        """Ids in the order of the file."""
        return list(self._lines)

    def line(self, id: str) -> Mapping[str, str] | None:
        """The cells of a row by column; None where the file has none."""
        return self._lines.get(id)

    def begin_with(self, other: CorrectionsFile) -> None:
        """Take the lines of another file that this one has not; they are written with the first decision."""
        self._names += [name for name in other._names if name not in self._names]
        theirs = {id: line for id, line in other._lines.items() if id not in self._lines}
        self._lines = {**theirs, **self._lines}

    def refresh(self) -> set[str]:
        """Read the file again if somebody else has written it since; a removed one comes back with the next write.

        Returns:
            The ids whose lines are others now.

        Raises:
            FormatError: It is no corrections file any more.
        """
        if _stamp(self.path) in (self._stamp, None):
            return set()
        before = dict(self._lines)
        self._read()
        ids = before.keys() | self._lines.keys()
        return {id for id in ids if _told(before.get(id)) != _told(self._lines.get(id))}

    def write(self, id: str, cells: Mapping[str, str] | None) -> None:
        """Change the cells of a row, or take its line away, and have the file on the disk.

        Args:
            id: The row.
            cells: New cells by column, the others stay; None: the line goes.

        Raises:
            OutputError: It cannot be written; the file and these lines are as before.
        """
        before = dict(self._lines)
        if cells is None:
            self._lines.pop(id, None)
        else:
            empty = dict.fromkeys(self._names, "")
            self._lines[id] = {**empty, **self._lines.get(id, {}), **cells, "id": id}
        try:
            write_whole(self.path, self._text(), encoding="utf-8-sig")
        except OutputError:
            self._lines = before
            raise
        self._stamp = _stamp(self.path)

    def _text(self) -> str:
        file = io.StringIO()
        writer = csv.DictWriter(file, self._names, lineterminator="\r\n")
        writer.writeheader()
        writer.writerows(self._lines.values())
        return file.getvalue()

    def _read(self) -> None:
        stamp = _stamp(self.path)
        names: list[str] = list(COLUMNS)
        lines: dict[str, dict[str, str]] = {}
        if stamp is not None:
            names, lines = _lines(read_written(self.path))
        self._names = [*names, *(name for name in COLUMNS if name not in names)]
        self._lines, self._stamp = lines, stamp


def _lines(written: Written) -> tuple[list[str], dict[str, dict[str, str]]]:
    decided(written)  # says what is wrong with it
    names = list(written.names)
    if twice := [name for name in names if names.count(name) > 1]:
        raise FormatError(f"the column {twice[0]!r} stands there twice", Place(written.file, 1))
    lines: dict[str, dict[str, str]] = {}
    for number, cells in written.lines:
        if len(cells) > len(names):
            raise FormatError(f"expected {len(names)} columns, found {len(cells)}", Place(written.file, number))
        line = dict(zip(names, cells))
        lines[line["id"]] = line
    return names, lines


def _stamp(path: Path) -> tuple[int, int] | None:
    """Changes whenever somebody writes the file; None where it is not there."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_mtime_ns, status.st_size


def _told(line: Mapping[str, str] | None) -> tuple[str, str] | None:
    """What a line decides."""
    return None if line is None else (line["action"].strip().lower(), line.get("new_label", "").strip())
