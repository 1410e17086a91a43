"""Which of the rows that a teacher labelled are kept: by confidence, agreement and quotas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from tuyi.config import Settings
from tuyi.evaluate.bootstrap import Floats

__all__ = ["CONFIDENCE", "Candidate", "LeftOut", "SelectSettings", "Selection", "pick_threshold", "select"]

CONFIDENCE = 0.8
"""The lowest confidence of a kept row where neither it nor a precision is given."""


class SelectSettings(Settings):
    """Which labelled rows are kept, and what they weigh."""

    confidence: float | None = Field(default=None, ge=0, le=1)
    """Lowest probability that the teacher gives its label; 0.8 where neither this nor ``precision`` is given."""
    precision: float | None = Field(default=None, gt=0, le=1)
    """Share of right labels among the kept rows; picks the lowest confidence that reaches it on the check rows."""
    unanimous: bool = False
    """Whether all teachers must name the same label."""
    at_most: int | None = Field(default=None, gt=0)
    """Most rows of a label, the most confident first."""
    at_least: int | None = Field(default=None, gt=0)
    """Rows of a label that are kept, the most confident first, even under the lowest confidence."""
    weight: Literal["one", "confidence"] = "one"
    """What a kept row weighs in the training loss: as much as a labelled one, or the teacher's confidence."""

    @model_validator(mode="after")
    def _consistent(self) -> SelectSettings:
        if self.confidence is not None and self.precision is not None:
            raise ValueError("confidence and precision both set the lowest confidence; leave one of them out")
        if self.at_most is not None and self.at_least is not None and self.at_least > self.at_most:
            raise ValueError(f"at_least {self.at_least} is more than at_most {self.at_most}")
        return self


@dataclass(frozen=True, slots=True)
class Candidate:
    """What teachers say about one row.

    Args:
        confidence: Probability of the label.
        soft: Probability of every label; None where no teacher gives any.
        votes: Each teacher's own label.
        views: The label that they give the row when they see it otherwise, by name of the view.
        rationale: Why, where a teacher says it.
    """

    id: str
    task: str
    label: str
    confidence: float
    soft: Mapping[str, float] | None = None
    votes: tuple[str, ...] = ()
    views: Mapping[str, str] = field(default_factory=dict)
    rationale: str | None = None


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A row that is not kept.

    Args:
        kind: The rule that left it out.
        why: The same in numbers of this row.
    """

    kind: Literal["teachers disagree", "views disagree", "not confident", "label is full", "not answered"]
    why: str


@dataclass(frozen=True, slots=True)
class Selection:
    """What is kept and what is not, by id."""

    kept: Mapping[str, Candidate]
    left_out: Mapping[str, LeftOut]


def select(candidates: Iterable[Candidate], settings: SelectSettings, lowest: Mapping[str, float]) -> Selection:
    """Choose rows. Agreement comes first, then confidence, then quotas.

    Args:
        candidates: Every row.
        settings: The rules.
        lowest: Lowest confidence of each task.
    """
    left: dict[str, LeftOut] = {}
    of_label: dict[tuple[str, str], list[Candidate]] = {}
    for row in candidates:
        if (wrong := _disagreement(row, settings)) is not None:
            left[row.id] = wrong
        else:
            of_label.setdefault((row.task, row.label), []).append(row)
    kept: dict[str, Candidate] = {}
    for (task, _), rows in of_label.items():
        rows.sort(key=lambda row: -row.confidence)
        least = lowest[task]
        count = sum(row.confidence >= least for row in rows)
        if settings.at_least is not None:
            count = max(count, min(settings.at_least, len(rows)))
        if settings.at_most is not None:
            count = min(count, settings.at_most)
        kept |= {row.id: row for row in rows[:count]}
        left |= {row.id: _under(row, least, settings) for row in rows[count:]}
    return Selection(kept, left)


def _disagreement(row: Candidate, settings: SelectSettings) -> LeftOut | None:
    if settings.unanimous and len(set(row.votes)) > 1:
        return LeftOut("teachers disagree", " / ".join(row.votes))
    for view, label in row.views.items():
        if label != row.label:
            return LeftOut("views disagree", f"{row.label}, but {label} as seen with {view}")
    return None


def _under(row: Candidate, least: float, settings: SelectSettings) -> LeftOut:
    if row.confidence < least:
        return LeftOut("not confident", f"confidence {row.confidence:.3f}, at least {least:.3f} is asked for")
    return LeftOut("label is full", f"{settings.at_most} rows of {row.label} have at least {row.confidence:.3f}")


def pick_threshold(confidence_N: Floats | Sequence[float], right_N: Sequence[bool], precision: float) -> float | None:
    """The lowest confidence at which the rows from it on are right often enough.

    Args:
        confidence_N: Of each row.
        right_N: Whether its label is right.
        precision: Share of right rows to reach.

    Returns:
        None where no confidence reaches it. The choice is made on these rows, so their precision flatters it a little.
    """
    order = np.argsort(-np.asarray(confidence_N, dtype=np.float64), kind="stable")
    sorted_N = np.asarray(confidence_N, dtype=np.float64)[order]
    precision_N = np.cumsum(np.asarray(right_N, dtype=np.float64)[order]) / np.arange(1, len(order) + 1)
    ends_N = np.append(sorted_N[1:] != sorted_N[:-1], True)  # rows of equal confidence are kept together or not at all
    reached = np.flatnonzero(ends_N & (precision_N >= precision))
    return float(sorted_N[reached[-1]]) if len(reached) else None
