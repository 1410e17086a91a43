"""What is known of a row that is labelled, and what is said of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from tuyi.data.example import Example
    from tuyi.task.task import Task

__all__ = ["Decision", "Progress", "Row", "Suggestion", "Why"]

Why: TypeAlias = Literal["changed", "audit", "unlabelled", "disagrees", "unread"]
"""Why a row is looked at: it changed since it was decided, an audit suspects it, it has no label, the model says
another, or it has none and the model cannot read it."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """What the served model says of a row.

    Args:
        probabilities: Of every label, the likeliest first; empty where it cannot read the row.
        rationale: Its reason, where the task asks for one.
        problem: Why it cannot read the row.
    """

    probabilities: Mapping[str, float] = field(default_factory=dict)
    rationale: str | None = None
    problem: str = ""

    @property
    def first(self) -> str:
        """The likeliest label."""
        return next(iter(self.probabilities), "")


@dataclass(frozen=True, slots=True)
class Decision:
    """What a person said of a row.

    Args:
        action: ``keep``, ``change`` or ``drop``.
        label: The new label, of ``change``.
    """

    action: Literal["keep", "change", "drop"]
    label: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """A row as it is put before a person.

    Args:
        given: Its label in the task's spelling; empty where it has none.
        suspected: The label that an audit suggests, and how sure it is.
        decision: What was decided about it before.
        revision: Changes with every decision about it; a decision is taken only by who has seen the last one.
    """

    example: Example
    task: Task
    given: str
    why: Why
    suggestion: Suggestion | None
    suspected: tuple[str, str] | None
    decision: Decision | None
    revision: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the work is.

    Args:
        done: Rows that are decided.
        total: Decided rows and those that are known to need a look.
        read: Rows that the model has read, of ``rows`` that it is to read.
        skipped: Rows that this person put off.
        rate: Decisions a minute; None before there are some.
    """

    done: int
    total: int
    read: int
    rows: int
    skipped: int
    rate: float | None
