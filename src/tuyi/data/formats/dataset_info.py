"""LLaMA-Factory's ``dataset_info.json``: which file a data set is, and what its columns and tags are called.

Source: LLaMA-Factory 0.9.5, ``llamafactory/data/parser.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tuyi.config import explain_errors
from tuyi.data.options import Tags
from tuyi.errors import FormatError, Place

__all__ = ["FILE_NAME", "Entry", "find_dataset", "find_entry", "load_info"]

FILE_NAME = "dataset_info.json"
_FORMATTINGS = ("alpaca", "sharegpt", "openai")


@dataclass(frozen=True, slots=True)
class Entry:
    """One data set of the file.

    Args:
        name: Its name.
        file: Its data file.
        formatting: ``alpaca``, ``sharegpt`` or ``openai``.
        columns: What the file calls LLaMA-Factory's columns.
        tags: Keys and roles of messages; None where the entry does not say.
    """

    name: str
    file: Path
    formatting: str
    columns: Mapping[str, str]
    tags: Tags | None


def load_info(file: Path) -> dict[str, Any]:
    """The whole ``dataset_info.json``.

    Raises:
        FormatError: It is not a JSON object; names line and column.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise FormatError(
            f"line {error.lineno}, column {error.colno}: broken JSON ({error.msg})", Place(file)
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"cannot be read as UTF-8 JSON: {error}", Place(file)) from error
    if not isinstance(value, dict):
        raise FormatError(f"expected an object of data sets, found {type(value).__name__}", Place(file))
    return value


def find_dataset(folder: Path, name: str | None) -> Entry:
    """The data set of that name, or the only one whose file is there.

    Raises:
        FormatError: None or several to choose from; their names are listed.
    """
    info = folder / FILE_NAME
    entries = load_info(info)
    if name is not None:
        if name not in entries:
            raise FormatError(f"no data set {name!r}; expected one of {', '.join(entries)}", Place(info))
        return _entry(info, name, entries[name])
    here = [key for key, value in entries.items() if _file_of(info, value) is not None]
    if len(here) != 1:
        names = ", ".join(here) or "none"
        raise FormatError(
            f"expected one data set whose file is here, found {names}; choose with dataset=NAME", Place(info)
        )
    return _entry(info, here[0], entries[here[0]])


def find_entry(file: Path, name: str | None) -> Entry | None:
    """What the ``dataset_info.json`` beside a data file says about it; None where it says nothing.

    Raises:
        FormatError: ``name`` is given and unknown, or several entries name the file.
    """
    info = file.parent / FILE_NAME
    if not info.is_file():
        if name is not None:
            raise FormatError(f"dataset={name}: expected a {FILE_NAME} beside the file", Place(file))
        return None
    if name is not None:
        return find_dataset(file.parent, name)
    entries = load_info(info)
    found = [key for key, value in entries.items() if _file_of(info, value) == file]
    if len(found) > 1:
        raise FormatError(f"{', '.join(found)} all name {file.name}; choose with dataset=NAME", Place(info))
    return _entry(info, found[0], entries[found[0]]) if found else None


def _file_of(info: Path, value: Any) -> Path | None:
    name = value.get("file_name") if isinstance(value, dict) else None
    file = info.parent / name if isinstance(name, str) else None
    return file if file is not None and file.is_file() else None


def _entry(info: Path, name: str, value: Any) -> Entry:
    file = _file_of(info, value)
    if file is None:
        raise FormatError(f"data set {name!r}: expected a file_name of a file beside {FILE_NAME}", Place(info))
    if value.get("ranking"):
        raise FormatError(f"data set {name!r} holds preference pairs (ranking), expected one answer a row", Place(info))
    formatting = value.get("formatting", "alpaca")
    if formatting not in _FORMATTINGS:
        expected = ", ".join(_FORMATTINGS)
        raise FormatError(f"data set {name!r}: expected formatting {expected}, found {formatting!r}", Place(info))
    columns = value.get("columns", {})
    if not isinstance(columns, dict) or not all(isinstance(column, str) for column in columns.values()):
        raise FormatError(f"data set {name!r}: expected columns as an object of names, found {columns!r}", Place(info))
    tags = value.get("tags")
    try:
        return Entry(name, file, formatting, columns, None if tags is None else Tags.model_validate(tags))
    except ValidationError as error:
        raise FormatError(explain_errors(error, f"data set {name!r}, tags", Tags), Place(info)) from error
