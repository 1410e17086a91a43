"""Typed access to the columns of one row, with errors that name what was expected and found."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from tuyi.data.options import ReadOptions
from tuyi.data.problem import BadRow, Kind
from tuyi.errors import Place

__all__ = ["Fields"]

_SUM = 1e-3
"""How far a distribution may be from 1: it was rounded when somebody wrote it."""
_NAMES = {str: "text", int: "a number", float: "a number", bool: "true/false", list: "a list", dict: "an object"}


class Fields:
    """One row, read column by column; what nobody asks for is :meth:`extra`.

    Args:
        row: The row as the file has it.
        place: File and row number; the id is added once it is known.
        options: Names of the common columns.
    """

    def __init__(self, row: Mapping[str, Any], place: Place, options: ReadOptions) -> None:
        self.row = row
        self.place = place
        self.options = options
        self._used: set[str] = set()
        self.id = self._read_id(options.id or "id")

    def _read_id(self, column: str) -> str:
        value = self.take(column)
        if value is None or value == "":
            return str(self.place.row)
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise self.wrong_type(column, "text or a whole number", value)
        self.place = Place(self.place.file, self.place.row, str(value))
        return str(value)

    def take(self, column: str) -> Any:
        """The raw value of a column, None where there is none."""
        self._used.add(column)
        return self.row.get(column)

    def bad(self, kind: Kind, message: str) -> BadRow:
        """An error at this row."""
        return BadRow(kind, message, self.place)

    def wrong_type(self, column: str, expected: str, value: Any) -> BadRow:
        """An error about the type of a column."""
        found = _NAMES.get(type(value), "nothing" if value is None else type(value).__name__)
        return self.bad("type", f"column {column!r}: expected {expected}, found {found} ({_short(value)})")

    def text(self, column: str) -> str:
        """A column that every row must have."""
        if column not in self.row:
            found = ", ".join(self.row) or "none"
            raise self.bad("column", f"expected the column {column!r}, found only {found}")
        value = self.take(column)
        if not isinstance(value, str):
            raise self.wrong_type(column, "text", value)
        return value

    def optional_text(self, column: str) -> str | None:
        """A text column that may be missing or null."""
        value = self.take(column)
        if value is not None and not isinstance(value, str):
            raise self.wrong_type(column, "text", value)
        return value

    def label(self, column: str) -> str | None:
        """A label; missing, null or blank means that nobody labelled the row."""
        value = self.optional_text(column)
        return value if value is not None and value.strip() else None

    def references(self, column: str) -> list[Any]:
        """Media references: a list, a single one, or none."""
        value = self.take(column)
        if value is None or value == "":
            return []
        return list(value) if isinstance(value, list | tuple) else [value]

    def objects(self, column: str) -> list[dict[str, Any]]:
        """A list of objects, such as chat messages."""
        if column not in self.row:
            raise self.bad("column", f"expected the column {column!r}, found only {', '.join(self.row) or 'none'}")
        value = self.take(column)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.wrong_type(column, "a list of objects", value)
        return value

    @property
    def task(self) -> str | None:
        """Name of the task, where the row says it."""
        return self.optional_text(self.options.task or "task") or None

    @property
    def rationale(self) -> str | None:
        """Why the label is right, where the row says it."""
        return self.optional_text(self.options.rationale or "rationale") or None

    @property
    def weight(self) -> float:
        """Weight in the loss; 1 where the row says nothing."""
        column = self.options.weight or "weight"
        value = self.take(column)
        if value is None or value == "":
            return 1.0
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError as error:
                raise self.wrong_type(column, "a number", value) from error
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong_type(column, "a number", value)
        if not math.isfinite(value) or value < 0:
            raise self.bad("type", f"column {column!r}: expected a weight of 0 or more, found {value}")
        return float(value)

    @property
    def soft(self) -> dict[str, float] | None:
        """A teacher's distribution over the labels: an object, or its JSON where cells are text; None without one."""
        column = self.options.soft or "soft"
        value = self.take(column)
        if value is None or value == "":
            return None
        expected = "an object of labels with their probabilities"
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except json.JSONDecodeError as error:
                raise self.wrong_type(column, f"{expected}, as JSON", value) from error
        if not isinstance(value, dict):
            raise self.wrong_type(column, expected, value)
        shares = {label: share for label, share in value.items() if share is not None}  # Parquet names every label
        for label, share in shares.items():
            if isinstance(share, bool) or not isinstance(share, int | float):
                raise self.wrong_type(f"{column}.{label}", "a number", share)
            if not math.isfinite(share) or share < 0:
                raise self.bad("type", f"column {column!r}: expected 0 or more for {label!r}, found {share}")
        total = sum(shares.values())
        if abs(total - 1) > _SUM:
            raise self.bad(
                "type",
                f"column {column!r}: expected probabilities that make 1 together, within {_SUM}, found {total:g}",
            )
        return {label: float(share) for label, share in shares.items()}

    def extra(self) -> Mapping[str, Any]:
        """Columns that nobody asked for; call it last."""
        return {name: value for name, value in self.row.items() if name not in self._used}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
