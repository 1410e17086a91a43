"""Raw rows out of JSON, JSON lines, CSV, TSV and Parquet files, one at a time."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from tuyi.data.problem import Problem
from tuyi.errors import FormatError, Place

__all__ = ["READERS", "RawRow", "raw_rows"]

RawRow: TypeAlias = tuple[int, dict[str, Any]]
"""Row number, counted from 1, and the row as the file has it."""

_BOM = b"\xef\xbb\xbf"
_WIDE_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_BATCH_ROWS = 64


def raw_rows(file: Path) -> Iterator[RawRow | Problem]:
    """The rows of a file, streamed; a bad line becomes a :class:`Problem` and reading goes on.

    Raises:
        FormatError: The file as a whole cannot be read; names line and column where there is one.
    """
    return READERS[file.suffix.lower()](file)


def _open_utf8(file: Path) -> BinaryIO:
    """The file, positioned after a byte order mark."""
    try:
        stream = file.open("rb")
    except FileNotFoundError as error:
        raise FormatError("the file does not exist", Place(file)) from error
    except OSError as error:
        raise FormatError(f"the file cannot be opened: {error.strerror}", Place(file)) from error
    head = stream.read(3)
    if not head:
        stream.close()
        raise FormatError("the file is empty, expected rows", Place(file))
    if head[:2] in _WIDE_BOMS:
        stream.close()
        raise FormatError(f"line 1: the file is {_WIDE_BOMS[head[:2]]}, expected UTF-8; save it as UTF-8", Place(file))
    stream.seek(3 if head == _BOM else 0)
    return stream


def _bad_encoding(file: Path) -> FormatError | None:
    """Where the first byte stands that is not UTF-8; None where all is well."""
    with _open_utf8(file) as stream:
        for number, line in enumerate(stream, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                column = len(line[: error.start].decode("utf-8")) + 1
                return FormatError(
                    f"line {number}, column {column}: byte 0x{line[error.start]:02x} is not UTF-8"
                    f"{_encoding_hint(line)}; save the file as UTF-8",
                    Place(file),
                )
    return None


def _encoding_hint(line: bytes) -> str:
    try:
        line.decode("gb18030")
    except UnicodeDecodeError:
        return ""
    return " (the line reads as GBK / GB18030)"


def _json_rows(file: Path) -> Iterator[RawRow | Problem]:
    with _open_utf8(file) as stream:
        start = stream.tell()
        first = _first_character(stream)
        stream.seek(start)
        if first == b"":
            raise FormatError("the file is empty, expected a list of rows `[{…}, …]`", Place(file))
        if first == b"{":
            yield from _lines(file, stream)
            return
        if first != b"[":
            raise _bad_encoding(file) or FormatError(
                f"line 1, column 1: expected a list of rows `[{{…}}, …]`, found {first.decode('utf-8', 'replace')!r}",
                Place(file),
            )
        yield from _list_items(file, stream)


def _first_character(stream: BinaryIO) -> bytes:
    while byte := stream.read(1):
        if not byte.isspace():
            return byte
    return b""


def _list_items(file: Path, stream: BinaryIO) -> Iterator[RawRow | Problem]:
    import ijson

    try:
        for number, row in enumerate(ijson.items(stream, "item", use_float=True), 1):
            yield _object(file, number, row)
    except ijson.JSONError as error:
        raise _json_error(file, error) from error


def _object(file: Path, number: int, row: Any) -> RawRow | Problem:
    if isinstance(row, dict):
        return number, row
    return Problem("type", f"expected an object `{{…}}`, found {type(row).__name__}", Place(file, number))


def _json_error(file: Path, error: Exception) -> FormatError:
    """The error with line and column, which the streaming reader does not know."""
    if (wrong := _bad_encoding(file)) is not None:
        return wrong
    try:
        json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as found:
        where = f"line {found.lineno}, column {found.colno}"
        return FormatError(f"{where}: broken JSON ({found.msg}), expected a list of rows `[{{…}}, …]`", Place(file))
    reason = str(error).splitlines()[0].removeprefix("parse error: ").removeprefix("lexical error: ")
    return FormatError(f"broken JSON ({reason}); NaN and numbers beyond 64 bits are not JSON here", Place(file))


def _jsonl_rows(file: Path) -> Iterator[RawRow | Problem]:
    with _open_utf8(file) as stream:
        start = stream.tell()
        first = _first_character(stream)
        stream.seek(start)
        yield from _list_items(file, stream) if first == b"[" else _lines(file, stream)


def _lines(file: Path, stream: BinaryIO) -> Iterator[RawRow | Problem]:
    number = 0
    for line_number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        number += 1
        try:
            row = json.loads(line.decode("utf-8").rstrip())
        except UnicodeDecodeError as error:
            raise _bad_encoding(file) or FormatError("not UTF-8", Place(file)) from error
        except json.JSONDecodeError as error:
            message = f"line {line_number}, column {error.colno}: broken JSON ({error.msg}), expected one object a line"
            yield Problem("syntax", message, Place(file, number))
            continue
        yield _object(file, number, row)


def _delimited(delimiter: str) -> Callable[[Path], Iterator[RawRow | Problem]]:
    def rows(file: Path) -> Iterator[RawRow | Problem]:
        _open_utf8(file).close()
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, delimiter=delimiter, strict=True)
            try:
                yield from _records(file, reader)
            except csv.Error as error:
                raise FormatError(f"line {reader.line_num}: broken table ({error})", Place(file)) from error
            except UnicodeDecodeError as error:
                raise _bad_encoding(file) or FormatError("not UTF-8", Place(file)) from error

    return rows


def _records(file: Path, reader: Iterator[list[str]]) -> Iterator[RawRow | Problem]:
    header = next(reader, None)
    if not header:
        raise FormatError("line 1: expected a line with column names, found nothing", Place(file))
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise FormatError(f"line 1: the column {twice[0]!r} stands there twice", Place(file))
    number = 0
    for cells in reader:
        if not cells:
            continue
        number += 1
        if len(cells) != len(header):
            message = f"expected {len(header)} columns ({', '.join(header)}), found {len(cells)}"
            yield Problem("column", message, Place(file, number))
            continue
        yield number, dict(zip(header, cells, strict=True))


def _parquet_rows(file: Path) -> Iterator[RawRow | Problem]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    _open_utf8(file).close()
    try:
        with pq.ParquetFile(file) as parquet:
            names = _class_names(parquet.schema_arrow.metadata or {})
            number = 0
            for batch in parquet.iter_batches(batch_size=_BATCH_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    for column, classes in names.items():
                        row[column] = _class_name(row.get(column), classes)
                    yield number, row
    except (pa.ArrowInvalid, OSError) as error:
        raise FormatError(f"not a readable Parquet file: {error}", Place(file)) from error


def _class_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Names behind numbered label columns (``ClassLabel`` of the Hugging Face datasets library)."""
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    return {
        column: feature["names"]
        for column, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and "names" in feature
    }


def _class_name(value: Any, classes: list[str]) -> Any:
    if not isinstance(value, int) or value == -1:
        return None if value == -1 else value
    return classes[value] if 0 <= value < len(classes) else value


READERS: dict[str, Callable[[Path], Iterator[RawRow | Problem]]] = {
    ".json": _json_rows,
    ".jsonl": _jsonl_rows,
    ".ndjson": _jsonl_rows,
    ".csv": _delimited(","),
    ".tsv": _delimited("\t"),
    ".parquet": _parquet_rows,
}
"""File name endings that hold rows."""
