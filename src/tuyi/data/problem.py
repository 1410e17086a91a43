"""What is wrong with a row, said so that a person can mend it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from tuyi.errors import DataError, FormatError, LabelError, MediaError, Place

__all__ = ["BadRow", "Kind", "Problem", "Severity"]

Kind: TypeAlias = Literal[
    "format",
    "syntax",
    "column",
    "type",
    "empty",
    "placeholder",
    "media",
    "label",
    "task",
    "rationale",
    "budget",
    "file",
    "duplicate-id",
    "duplicate-row",
    "duplicate-picture",
    "duplicate-text",
    "conflict",
    "leak",
]
Severity: TypeAlias = Literal["error", "warning"]

_ERRORS: dict[str, type[DataError]] = {
    "format": FormatError,
    "syntax": FormatError,
    "media": MediaError,
    "label": LabelError,
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the data.

    Args:
        kind: What sort of problem, for counting and filtering.
        message: Expected, found, fix.
        place: File, row and id.
        severity: An ``error`` makes the row unusable; a ``warning`` is worth a look.
    """

    kind: Kind
    message: str
    place: Place
    severity: Severity = "error"

    def __str__(self) -> str:
        where = str(self.place)
        return f"{where}: {self.message}" if where else self.message

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "kind": self.kind,
            "severity": self.severity,
            "file": None if self.place.file is None else str(self.place.file),
            "row": self.place.row,
            "id": self.place.id,
            "message": self.message,
        }

    def to_error(self) -> DataError:
        """The same as an exception of the fitting type."""
        return _ERRORS.get(self.kind, DataError)(self.message, self.place)


class BadRow(DataError):
    """A row that cannot be read, on its way to becoming a :class:`Problem`; it never leaves this room."""

    def __init__(self, kind: Kind, message: str, place: Place) -> None:
        super().__init__(message, place)
        self.kind: Kind = kind

    def to_problem(self) -> Problem:
        """The problem to report."""
        return Problem(self.kind, self.message, self.place)
