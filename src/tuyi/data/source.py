"""Reading a data file of any known format, row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, get_args

from tuyi.data.example import Example
from tuyi.data.formats import competition, messages, sharegpt, table
from tuyi.data.formats.dataset_info import FILE_NAME, find_dataset, find_entry
from tuyi.data.formats.fields import Fields
from tuyi.data.formats.folder import scan_folder
from tuyi.data.options import FormatName, ReadOptions
from tuyi.data.problem import BadRow, Problem
from tuyi.data.rows import READERS, RawRow, raw_rows
from tuyi.errors import ConfigError, FormatError, Place

__all__ = ["Source", "find_source", "read", "scan"]

_MOST_BAD_ROWS = 100
"""Bad rows at the start of a file after which its format is not looked for any longer."""
_FORMATS = ", ".join(get_args(FormatName))


@dataclass(frozen=True, slots=True)
class Source:
    """A data file with its format told.

    Args:
        file: The data file, or the folder of label folders.
        format: Its format.
    """

    file: Path
    format: FormatName


def find_source(path: str | Path, options: ReadOptions | None = None) -> Source:
    """Which file a path means, and in which format it is; reads at most its first rows.

    Raises:
        FormatError: Nothing there, or the format cannot be told; names the formats.
    """
    return _open(path, options or ReadOptions())[0]


def scan(path: str | Path, options: ReadOptions | None = None) -> Iterator[Example | Problem]:
    """Every row of a data file, good or bad, streamed.

    Args:
        path: A JSON, JSONL, CSV, TSV or Parquet file, a folder per label, or a folder with one data file.
        options: What the file itself does not say.

    Yields:
        An :class:`Example` for a row that can be read, a :class:`Problem` for one that cannot.

    Raises:
        FormatError: The file as a whole cannot be read.
        ConfigError: An option that the format has no use for.
    """
    options = options or ReadOptions()
    source, rows, first_columns = _open(path, options)
    if source.format == "folder":
        found: Iterator[Example | Problem] = scan_folder(source.file, options)
    else:
        found = _examples(source, rows, _row_reader(source, options, first_columns), options)
    empty = True
    for item in found:
        empty = False
        yield item
    if empty:
        raise FormatError("the file has no rows", Place(source.file))


def read(path: str | Path, options: ReadOptions | None = None) -> Iterator[Example]:
    """Every row of a data file, streamed; stops at the first bad one.

    Arguments as for :func:`scan`.

    Raises:
        DataError: The first row that cannot be read, with file, row and id.
    """
    for item in scan(path, options):
        if isinstance(item, Example):
            yield item
        elif item.severity == "error":
            raise item.to_error()


def _examples(
    source: Source, rows: Iterator[RawRow | Problem], read_row: Callable[[Fields], Example], options: ReadOptions
) -> Iterator[Example | Problem]:
    for raw in rows:
        if isinstance(raw, Problem):
            yield raw
            continue
        number, row = raw
        try:
            yield read_row(Fields(row, Place(source.file, number), options))
        except BadRow as error:
            yield error.to_problem()


def _row_reader(source: Source, options: ReadOptions, columns: list[str]) -> Callable[[Fields], Example]:
    if source.format == "table":
        return table.reader(source.file, options, columns)
    if unused := [name for name in ("text", "label") if getattr(options, name) is not None]:
        raise ConfigError(f"{unused[0]}=… names a column of a table, but {source.file} is in {source.format} format")
    if source.format == "competition":
        return competition.reader(source.file, options)
    if source.format == "sharegpt":
        return sharegpt.reader(source.file, options)
    return messages.reader(source.file, options)


def _open(path: str | Path, options: ReadOptions) -> tuple[Source, Iterator[RawRow | Problem], list[str]]:
    """Source, its raw rows, and the columns of the first row."""
    file = Path(path)
    if not file.exists():
        raise FormatError("there is no such file or folder", Place(file))
    if file.is_dir():
        if options.format == "folder" or (options.format == "auto" and not _data_files(file)):
            return Source(file, "folder"), iter(()), []
        file = _file_in(file, options)
    if file.suffix.lower() not in READERS:
        raise FormatError(
            f"expected a file ending in {', '.join(READERS)} or a folder per label; found {file.suffix or 'no ending'}",
            Place(file),
        )
    rows = raw_rows(file)
    seen: list[RawRow | Problem] = []
    columns: list[str] = []
    for raw in rows:
        seen.append(raw)
        if not isinstance(raw, Problem):
            columns = list(raw[1])
            break
        if len(seen) == _MOST_BAD_ROWS:
            break
    if options.format == "auto" and not columns and isinstance(first := next(iter(seen), None), Problem):
        raise FormatError(f"no row can be read; the first: {first.message}", first.place)
    told = options.format if options.format != "auto" else _tell(file, dict.fromkeys(columns), options, bool(seen))
    return Source(file, told), chain(seen, rows), columns


def _data_files(folder: Path) -> list[Path]:
    return sorted(item for item in folder.iterdir() if item.suffix.lower() in READERS and item.name != FILE_NAME)


def _file_in(folder: Path, options: ReadOptions) -> Path:
    """The data file that a folder stands for."""
    if (folder / FILE_NAME).is_file():
        return find_dataset(folder, options.dataset).file
    files = _data_files(folder)
    if len(files) == 1:
        return files[0]
    names = ", ".join(item.name for item in files[:8]) or "none"
    raise FormatError(f"expected one data file in the folder, found {names}; point at the one you mean", Place(folder))


def _tell(file: Path, row: dict[str, Any], options: ReadOptions, has_rows: bool) -> FormatName:
    """The format of a file from its name and the columns of its first row."""
    if not has_rows:
        raise FormatError(f"the file has no rows, expected one of the formats {_FORMATS}", Place(file))
    if options.text is not None or options.label is not None or file.suffix.lower() in (".csv", ".tsv"):
        return "table"
    if options.tags is not None or find_entry(file, options.dataset) is not None or "conversations" in row:
        return "sharegpt"
    if "messages" in row:
        return "messages"
    if "instruction" in row:
        return "competition" if "image" in row or not row.keys() & {"images", "videos", "system"} else "sharegpt"
    if any(name in row for usual in table.USUAL.values() for name in usual) or options.images in row:
        return "table"
    raise FormatError(
        f"cannot tell the format from the columns {', '.join(row) or '(none)'}; expected one of {_FORMATS}: "
        "conversations → sharegpt, messages → messages, instruction and image → competition, "
        f"text, image or label → table; or say format=…, text=COLUMN, label=COLUMN",
        Place(file),
    )
