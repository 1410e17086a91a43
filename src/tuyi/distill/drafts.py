"""Reasons on their way: which rows are asked for one, what the teacher wrote, what the checks say of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from tuyi.config import Settings
from tuyi.data.example import Example
from tuyi.data.options import ReadOptions
from tuyi.data.problem import Problem
from tuyi.data.source import scan
from tuyi.distill.lessons import Lesson
from tuyi.distill.reason_checks import Alike, ReasonChecks, Rejection, look_at, trimmed
from tuyi.distill.reasons import ReasonTemplate, reason_row, support_row
from tuyi.errors import LabelError, Place, TaskError
from tuyi.predict.prediction import Prediction
from tuyi.predict.settings import PredictSettings
from tuyi.task.catalog import TaskSet

__all__ = ["Draft", "Drafts", "RationalizeRun", "RationalizeSettings"]


class RationalizeSettings(Settings):
    """How reasons are asked for, and which are kept."""

    templates: Path | None = None
    """YAML file with the wording for each task; built-in wording where not given."""
    replace: bool = False
    """Whether rows that have a reason are given a new one; they keep theirs where not."""
    sized_by: str = "builtin:tiny"
    """With a teacher that is known by its server alone: the model whose tokenizer and picture sizes are used."""
    checks: ReasonChecks = ReasonChecks()
    """Which reasons are kept out."""
    price_input: float | None = Field(default=None, ge=0)
    """Price of a million prompt tokens."""
    price_output: float | None = Field(default=None, ge=0)
    """Price of a million tokens that the teacher writes."""


class RationalizeRun(Settings):
    """What ``--set`` and ``--read`` can change."""

    reasons: RationalizeSettings = RationalizeSettings()
    """How reasons are asked for, and which are kept."""
    predict: PredictSettings = PredictSettings()
    """How the teacher runs."""
    budget: dict[str, Any] = Field(default_factory=dict)
    """Budget settings to use instead of the tasks', such as ``max_pixels``."""
    read: ReadOptions = ReadOptions()
    """How to read the data."""


@dataclass(slots=True)
class Draft:
    """The reason of a row on its way through the checks."""

    place: Place
    task: str
    label: str
    text: str = ""
    rejection: Rejection | None = None


@dataclass(slots=True)
class Drafts:
    """A data set whose rows are given reasons."""

    data: Path
    tasks: TaskSet
    templates: Mapping[str, ReasonTemplate]
    run: RationalizeRun
    drafts: dict[str, Draft] = field(default_factory=dict)

    def scan(self) -> Iterator[Example | Problem]:
        return scan(self.data, self.run.read)

    def draft(self, row: Example) -> Draft | None:
        """The reason of a row; None for one that is not to be given any."""
        draft = self.drafts.get(row.id)
        return draft if draft is not None and draft.place == row.place else None

    def reason_rows(self) -> Iterator[Example | Problem]:
        """The question for the reason of every labelled row that has none; a problem for every other."""
        for row in self.scan():
            if isinstance(row, Problem):
                yield row
                continue
            if row.label is None:
                message = "expected a label, found none; `tuyi label` finds labels for rows that have none"
                yield Problem("label", message, replace(row.place, id=row.id))
                continue
            if row.rationale is not None and not self.run.reasons.replace:
                continue
            if row.id in self.drafts:
                yield Problem("duplicate-id", f"duplicate id {row.id!r}; every row needs its own", row.place)
                continue
            try:
                task = self.tasks.of(row)
                assert task.labels is not None
                label = task.labels.canonical(row.label)
            except LabelError as error:
                yield Problem("label", error.message, replace(row.place, id=row.id))
                continue
            except TaskError as error:
                yield Problem("task", str(error), Place())  # it says the place itself
                continue
            self.drafts[row.id] = Draft(row.place, task.name, label)
            yield reason_row(task, self.templates[task.name], row, label)

    def support_rows(self) -> Iterator[Example]:
        """The question for the label, reason at hand, of every row whose reason is good so far."""
        for row in self.scan():
            if isinstance(row, Example) and (draft := self.draft(row)) is not None and draft.rejection is None:
                yield support_row(self.tasks[draft.task], self.templates[draft.task], row, draft.text)

    def take(self, lesson: Lesson) -> None:
        """Fill in the reasons and look at each, in the order of the data."""
        checks = self.run.reasons.checks
        groups = Alike(checks.alike_at)
        for id in [id for id in self.drafts if id not in lesson.answers and id not in lesson.failed]:
            del self.drafts[id]  # skipped
        for id, draft in self.drafts.items():
            if (failed := lesson.failed.get(id)) is not None:
                draft.rejection = Rejection("no_answer", failed)
                continue
            answer = lesson.answers[id]
            draft.text = trimmed(answer.label)
            draft.rejection = self._look(draft, answer)
            if checks.alike and draft.rejection is None and draft.text:
                size, first = groups.add(id, draft.text)
                if size > checks.alike_kept:
                    detail = f"number {size} of those like that of row {first}"
                    draft.rejection = Rejection("alike", detail)

    def _look(self, draft: Draft, answer: Prediction) -> Rejection | None:
        template, labels = self.templates[draft.task], self.tasks[draft.task].labels
        assert labels is not None
        definition = next(one.definition for one in labels.labels if one.name == draft.label)
        checks = self.run.reasons.checks
        found = look_at(draft.text, draft.label, definition, template.max_characters, checks)
        if found is None and checks.too_long and answer.notes.get("cut_free"):
            return Rejection("too_long", f"cut at {template.max_tokens} tokens")
        return found

    def take_support(self, lesson: Lesson) -> None:
        """Keep out the reasons with which the teacher picks another label."""
        for id, draft in self.drafts.items():
            if draft.rejection is not None:
                continue
            if (answer := lesson.answers.get(id)) is None:
                draft.rejection = Rejection(
                    "no_answer", lesson.failed.get(id, "the row with its reason cannot be asked")
                )
            elif answer.label != draft.label:
                draft.rejection = Rejection("not_supported", f"with it the teacher picks {answer.label}")
