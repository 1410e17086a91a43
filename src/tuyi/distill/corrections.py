"""The corrections file: what a person decided about each issue of an audit."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from tuyi.data.example import Example, Image, Video
from tuyi.data.fingerprint import MediaDigests, digest, row_digest
from tuyi.errors import FormatError, Place

if TYPE_CHECKING:
    from tuyi.distill.label_issues import Issue

__all__ = [
    "COLUMNS",
    "Action",
    "Correction",
    "Written",
    "corrections_csv",
    "corrections_rows",
    "decided",
    "fingerprint",
    "read_corrections",
    "read_written",
]

Action: TypeAlias = Literal["", "keep", "change", "drop"]
COLUMNS = ("id", "task", "given_label", "suggested_label", "confidence", "why", "action", "new_label", "note", "seen")
"""Columns of a corrections file; ``seen`` is what the audit saw of the row."""
_NEEDED = ("id", "given_label", "suggested_label", "action", "seen")


def fingerprint(example: Example, digests: MediaDigests) -> str:
    """A short text that changes with anything that a row shows and with its label.

    Begins with a letter, since spreadsheets round long numbers.

    Raises:
        MediaError: A picture or video cannot be read.
    """
    media = [digests.of(part) for part in example.parts if isinstance(part, Image | Video)]
    return f"h{digest(f'{example.label}{row_digest(example, media)}'):016x}"


@dataclass(frozen=True, slots=True)
class Correction:
    """One line of a corrections file.

    Args:
        given: The label that the audit saw.
        suggested: The label that it suggests.
        confidence: Probability of the suggestion; None where the line has none.
        rare: Whether the given label is too rare for the suggestion to be taken unseen.
        action: What to do; empty: nothing was decided, the row stays.
        new_label: The label to set instead of the suggested one; empty for the suggested one.
        seen: Fingerprint of the row.
        place: File and line.
    """

    id: str
    given: str
    suggested: str
    confidence: float | None
    rare: bool
    action: Action
    new_label: str
    seen: str
    place: Place


def corrections_rows(issues: Sequence[Issue]) -> list[list[str]]:
    """For each issue the cells of :data:`COLUMNS`, nothing decided yet."""
    found = []
    for issue in issues:
        row = issue.judged
        why = " ".join((*issue.kinds, *(("rare",) if row.rare else ())))
        told = [row.id, row.task, row.label, issue.suggested, f"{issue.confidence:.4f}", why]
        found.append([*told, "", "", "", row.fingerprint])
    return found


def corrections_csv(issues: Sequence[Issue]) -> str:
    """The corrections file of an audit, nothing decided yet; write it as ``utf-8-sig``."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    writer.writerows(corrections_rows(issues))
    return file.getvalue()


@dataclass(frozen=True, slots=True)
class Written:
    """The cells of a corrections file.

    Args:
        file: It.
        names: Its columns.
        lines: Number and cells of each line that is not blank; as many cells as columns, or more.
    """

    file: Path
    names: tuple[str, ...]
    lines: tuple[tuple[int, list[str]], ...]


def read_written(file: Path) -> Written:
    """The cells of a corrections file, as the audit, its page or a spreadsheet wrote it.

    Raises:
        FormatError: It cannot be read, or lacks a column.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise FormatError("the corrections file does not exist", Place(file)) from error
    except UnicodeDecodeError as error:
        raise FormatError("the corrections file is not UTF-8; save it as “CSV UTF-8”", Place(file)) from error
    except OSError as error:
        raise FormatError(f"the corrections file cannot be read: {error.strerror or error}", Place(file)) from error
    head = text.partition("\n")[0]
    # spreadsheets write the separator of their country
    separator = max(",;\t", key=head.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    names = [name.strip() for name in next(rows, [])]
    if missing := [name for name in _NEEDED if name not in names]:
        raise FormatError(
            f"expected the columns {', '.join(_NEEDED)}, found {', '.join(names) or 'none'} ({missing[0]} is missing); "
            "`tuyi audit DATA --out DIR` writes such a file",
            Place(file, 1),
        )
    lines = [
        (number, [*cells, *[""] * (len(names) - len(cells))])
        for number, cells in enumerate(rows, 2)
        if any(cell.strip() for cell in cells)
    ]
    return Written(file, tuple(names), tuple(lines))


def read_corrections(file: Path) -> list[Correction]:
    """What a corrections file says.

    Raises:
        FormatError: It cannot be read, lacks a column, or a line has an unknown action.
    """
    return decided(read_written(file))


def decided(written: Written) -> list[Correction]:
    """What the lines of a corrections file say.

    Raises:
        FormatError: A line has an unknown action or confidence, or two have one id.
    """
    file, names = written.file, written.names
    found = [_correction(dict(zip(names, cells)), Place(file, number)) for number, cells in written.lines]
    if twice := [id for id, many in Counter(one.id for one in found).items() if many > 1]:
        raise FormatError(f"id {twice[0]!r} stands in the corrections twice, expected it once", Place(file))
    return found


def _correction(cells: Mapping[str, str], place: Place) -> Correction:
    place = replace(place, id=cells["id"])
    action = cells["action"].strip().lower()
    if action not in get_args(Action):
        raise FormatError(f"action: expected keep, change, drop or nothing, found {cells['action']!r}", place)
    confidence = cells.get("confidence", "").strip().replace(",", ".")
    try:
        number = float(confidence) if confidence else None
    except ValueError as error:
        raise FormatError(f"confidence: expected a number, found {confidence!r}", place) from error
    return Correction(
        id=cells["id"],
        given=cells["given_label"],
        suggested=cells["suggested_label"],
        confidence=number,
        rare="rare" in cells.get("why", "").split(),
        action=action,  # type: ignore[arg-type]
        new_label=cells.get("new_label", "").strip(),
        seen=cells["seen"].strip(),
        place=place,
    )
