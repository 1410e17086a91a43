"""Writing examples as data files: streamed, media beside them, never a half file under the final name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TextIO, TypeAlias

from tuyi.data.example import Example, Text
from tuyi.data.formats import competition, dataset_info, messages, sharegpt
from tuyi.data.formats.media import MediaFolders
from tuyi.data.media_store import MediaStore
from tuyi.errors import DataError, OutputError
from tuyi.whole import output_errors, write_whole

__all__ = ["SUFFIXES", "WRITABLE", "ExampleWriter", "WriteFormat"]

WriteFormat: TypeAlias = Literal["competition", "sharegpt", "messages"]

_Render: TypeAlias = Callable[[Example, tuple[list[str], list[str]]], dict[str, Any]]
_FORMATS: dict[str, tuple[_Render, frozenset[str]]] = {
    "competition": (competition.render, competition.COLUMNS),
    "sharegpt": (sharegpt.render, sharegpt.COLUMNS),
    "messages": (messages.render, messages.COLUMNS),
}
WRITABLE: tuple[str, ...] = tuple(_FORMATS)
SUFFIXES: Mapping[str, str] = {"competition": ".json", "sharegpt": ".json", "messages": ".jsonl"}
"""File name ending that each format is written with."""


@dataclass
class ExampleWriter:
    """Writes one data file; a context manager whose file appears only when all went well.

    Args:
        out: The file to write.
        format: ``competition``, ``sharegpt`` (with ``dataset_info.json``) or ``messages``.
        force: Replace a file that is there.
        copy_media: Copy pictures and videos beside the file instead of naming them where they lie.

    Raises:
        OutputError: ``out`` is taken or cannot be written.
        DataError: A row that the format cannot hold.
    """

    out: Path
    format: WriteFormat
    force: bool = False
    copy_media: bool = False
    rows: int = field(default=0, init=False)
    unlabelled: int = field(default=0, init=False)
    media: int = field(default=0, init=False)
    videos: int = field(default=0, init=False)

    def __enter__(self) -> ExampleWriter:
        if self.format not in _FORMATS:
            raise OutputError(f"expected one of the formats {', '.join(WRITABLE)}, found {self.format!r}")
        expected = (".jsonl", ".ndjson") if self.format == "messages" else (".json",)
        if self.out.suffix.lower() not in expected:
            raise OutputError(f"{self.out}: expected a name ending in {expected[0]} for the {self.format} format")
        if self.out.exists() and not self.force:
            raise OutputError(f"{self.out} is already there; choose another name or replace it with --force")
        self._check_info()
        self._temporary = self.out.with_name(f".{self.out.name}.{os.getpid()}.tmp")
        with output_errors(self.out):
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self._stream: TextIO = self._temporary.open("w", encoding="utf-8", newline="\n")
        inner = competition.MEDIA_FOLDER if self.format == "competition" else None
        self._store = MediaStore(MediaFolders(Path(os.path.abspath(self.out.parent)), None, inner), self.copy_media)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            with output_errors(self.out):
                if kind is None and self.format != "messages":
                    self._stream.write("\n]\n" if self.rows else "[]\n")
                self._stream.close()
                if kind is None:
                    self._temporary.replace(self.out)
            if kind is None and self.format == "sharegpt":
                self._write_info()
        finally:
            self._stream.close()
            with suppress(FileNotFoundError):
                self._temporary.unlink()

    def write(self, example: Example) -> None:
        """Add one row."""
        try:
            text = self._line(example)
        except DataError as error:
            error.at(example.place)
            raise
        with output_errors(self.out):
            if self.format == "messages":
                self._stream.write(text + "\n")
            else:
                self._stream.write(("[\n" if self.rows == 0 else ",\n") + text)
        self.rows += 1
        self.unlabelled += example.label is None
        self.media += len(example.images) + len(example.videos)
        self.videos += len(example.videos)

    def _line(self, example: Example) -> str:
        render, columns = _FORMATS[self.format]
        if taken := sorted(columns & example.extra.keys()):
            raise DataError(
                f"the extra column {taken[0]!r} is called like a column of the {self.format} format; "
                "rename it, or choose another format"
            )
        if not any(part != Text("") for part in example.content):
            raise DataError("the content is empty, expected text or media")
        names = (
            [self._store.name(image) for image in example.images],
            [self._store.name(video) for video in example.videos],
        )
        row = render(example, names)
        if example.task is not None:
            row["task"] = example.task
        if example.rationale is not None:
            row["rationale"] = example.rationale
        if example.weight != 1.0:
            row["weight"] = example.weight
        if example.soft is not None:
            row["soft"] = dict(example.soft)
        return _json(row)

    def _check_info(self) -> None:
        """Refuse, before any work, to take over another file's entry in ``dataset_info.json``."""
        info = self.out.parent / dataset_info.FILE_NAME
        if self.format != "sharegpt" or not info.is_file():
            return
        entry = dataset_info.load_info(info).get(self.out.stem)
        if entry is not None and entry.get("file_name") != self.out.name and not self.force:
            raise OutputError(
                f"{info} already has a data set {self.out.stem!r} of another file; "
                "choose another name or replace it with --force"
            )

    def _write_info(self) -> None:
        info = self.out.parent / dataset_info.FILE_NAME
        entries = dataset_info.load_info(info) if info.is_file() else {}
        entries[self.out.stem] = sharegpt.info_entry(self.out.name, has_videos=self.videos > 0)
        write_whole(info, json.dumps(entries, ensure_ascii=False, indent=2) + "\n")


def _json(row: dict[str, Any]) -> str:
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False)
        text.encode("utf-8")
    except TypeError as error:
        names = ", ".join(name for name, value in row.items() if not _is_json(value))
        raise DataError(f"column {names}: {error}; turn it into text or numbers first") from error
    except UnicodeEncodeError as error:
        raise DataError("the text holds half of a surrogate pair, which UTF-8 cannot write") from error
    except ValueError as error:
        raise DataError(f"a number is NaN or infinite, which JSON cannot write: {error}") from error
    return text


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True
