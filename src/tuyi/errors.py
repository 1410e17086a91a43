"""Everything tuyi raises on purpose.

::

    TuyiError
    ├── ConfigError        settings or a task file are wrong; lists every problem with its dotted path
    │   └── TaskError      a task that cannot be found, recognised or asked
    ├── DataError          a row or a data file is wrong; carries file, row and id
    │   ├── FormatError    the file as a whole cannot be read as what it claims to be
    │   ├── LabelError     a label outside the task's set; carries the nearest known one
    │   ├── MediaError     a picture or video that cannot be used
    │   └── BudgetError    a row that no rule can shorten to the token budget
    ├── ModelError         a model folder or hub id that cannot be used here
    ├── EngineError        a server or engine that fails, or that answers outside the labels
    │   └── AnswerError    the same of one row, while others may go well; carries the row's id
    ├── OutputError        an output path that is taken, or belongs to another run
    └── TrainingError      a run that must stop: loss not finite, no checkpoint to resume

A message says what was expected, what was found and how to mend it. Errors of other libraries are
translated once, at the edge where they appear, with ``raise … from``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "AnswerError",
    "BudgetError",
    "ConfigError",
    "DataError",
    "EngineError",
    "FormatError",
    "LabelError",
    "MediaError",
    "ModelError",
    "OutputError",
    "Place",
    "TaskError",
    "TrainingError",
    "TuyiError",
    "first_line",
]


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the input something stands: file, row (counted from 1) and the row's id."""

    file: Path | None = None
    row: int | None = None
    id: str | None = None

    def __str__(self) -> str:
        where = [str(self.file)] if self.file is not None else []
        if self.row is not None:
            where.append(f"row {self.row}")
        if self.id is not None:
            where.append(f"id {self.id}")
        return ", ".join(where)


class TuyiError(Exception):
    """Base of every error that a user can mend; the command line prints it without a traceback."""


class ConfigError(TuyiError):
    """Settings that cannot be used."""


class TaskError(ConfigError):
    """A task that cannot be found, recognised or asked."""


class DataError(TuyiError):
    """A row or file of the data that cannot be used.

    Args:
        message: Expected, found, fix.
        place: File, row and id, put in front of the message.
    """

    def __init__(self, message: str, place: Place | None = None) -> None:
        self.message = message
        self.place = place or Place()
        super().__init__(message)

    def __str__(self) -> str:
        where = str(self.place)
        return f"{where}: {self.message}" if where else self.message

    def at(self, place: Place) -> DataError:
        """The same error, at a place that is known better further out."""
        self.place = place
        return self


class FormatError(DataError):
    """A file that cannot be read as the format it claims to be."""


class LabelError(DataError):
    """A label outside the task's set."""


class MediaError(DataError):
    """A picture or video that cannot be used."""


class BudgetError(DataError):
    """A row that no rule can shorten to the token budget."""


class ModelError(TuyiError):
    """A model that cannot be loaded or used here."""


class EngineError(TuyiError):
    """A server or engine outside this process that fails, or answers with something that is no label."""


class AnswerError(EngineError):
    """An engine refuses one row, or what it answers cannot be used.

    Args:
        message: Expected, found, fix.
        id: The row's id.
    """

    def __init__(self, message: str, id: str = "") -> None:
        self.id = id
        super().__init__(message)


class OutputError(TuyiError):
    """An output path that is taken or belongs to another run."""


class TrainingError(TuyiError):
    """A training run that must stop."""


def first_line(error: BaseException) -> str:
    """The first line of somebody else's error, its type where it says nothing; for a message of ours."""
    return next(iter(str(error).splitlines()), type(error).__name__)
