"""The form of an answer: what is fixed, what is written freely, where the label stands.

The same object renders the training target and drives decoding, so the two cannot drift apart.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Annotated, Any, TypeAlias
from typing import Literal as Const

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

__all__ = ["ANSWERS", "AnswerFormat", "Choice", "Free", "Literal", "Segment"]


class Literal(BaseModel):
    """Text that every answer has at this place."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    literal: str = Field(min_length=1)


class Free(BaseModel):
    """Text that the model writes itself, up to a number of tokens.

    ``rationale`` takes the example's rationale, ``answer`` its label as it stands (an open task).
    Inside a JSON answer it is written as the inside of a JSON string.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    free: Const["rationale", "answer"]
    max_tokens: int = Field(default=80, gt=0)
    in_json: bool = False


class Choice(BaseModel):
    """The label: exactly one of the task's labels."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    choice: Const["label"] = "label"


Segment: TypeAlias = Literal | Free | Choice

ANSWERS: dict[str, list[dict[str, Any]]] = {
    "label": [{"choice": "label"}],
    "reason": [
        {"literal": '{"理由": "'},
        {"free": "rationale", "max_tokens": 80, "in_json": True},
        {"literal": '", "所属类别": "'},
        {"choice": "label"},
        {"literal": '"}'},
    ],
    "open": [{"free": "answer", "max_tokens": 1024}],
}
"""Answer formats that a task file can call by name."""


def _named(value: Any) -> Any:
    if isinstance(value, str):
        if value not in ANSWERS:
            raise ValueError(f"expected a list of segments or one of {', '.join(ANSWERS)}, found {value!r}")
        return ANSWERS[value]
    return value


class AnswerFormat(BaseModel):
    """Segments of an answer, in order."""

    model_config = ConfigDict(frozen=True)
    segments: tuple[Segment, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _once(self) -> AnswerFormat:
        named = [segment.free if isinstance(segment, Free) else "label" for segment in self.segments]
        named = [name for name, segment in zip(named, self.segments) if not isinstance(segment, Literal)]
        if twice := sorted(name for name in set(named) if named.count(name) > 1):
            raise ValueError(f"expected {twice[0]} once, found it {named.count(twice[0])} times")
        if any(isinstance(one, Free) and isinstance(other, Free) for one, other in pairwise(self.segments)):
            raise ValueError("expected something between two free texts, found nothing; put a literal there")
        return self

    @property
    def has_choice(self) -> bool:
        """Whether the answer contains a label of a closed set."""
        return any(isinstance(segment, Choice) for segment in self.segments)

    @property
    def has_free(self) -> bool:
        """Whether the model writes some of the answer; what is certain once the label is known needs no decoding."""
        return any(isinstance(segment, Free) for segment in self.segments)

    @property
    def is_open(self) -> bool:
        """Whether the answer is what the model writes, whatever stands around it."""
        return any(isinstance(segment, Free) and segment.free == "answer" for segment in self.segments)

    @property
    def is_plain(self) -> bool:
        """Whether the answer is the label and nothing else, so that it needs no decoding."""
        return len(self.segments) == 1 and self.has_choice

    @property
    def needs_rationale(self) -> bool:
        """Whether a training row must bring a rationale."""
        return any(isinstance(segment, Free) and segment.free == "rationale" for segment in self.segments)

    def render(self, label: str, rationale: str | None = None) -> str:
        """The answer that a training row teaches.

        Args:
            label: The task's own spelling of the label; for an open task the whole answer.
            rationale: Needed where :attr:`needs_rationale`.

        Raises:
            ValueError: A rationale is needed and missing.
        """
        return "".join(self.texts(label, rationale))

    def texts(self, label: str, rationale: str | None = None) -> tuple[str, ...]:
        """The same, segment by segment; a label inside a JSON answer is written as the inside of a JSON string."""
        in_json = any(isinstance(segment, Free) and segment.in_json for segment in self.segments)
        spelled = json.dumps(label, ensure_ascii=False)[1:-1] if in_json else label
        return tuple(
            spelled if isinstance(segment, Choice) else self._text(segment, label, rationale)
            for segment in self.segments
        )

    @staticmethod
    def _text(segment: Literal | Free, label: str, rationale: str | None) -> str:
        if isinstance(segment, Literal):
            return segment.literal
        value = label if segment.free == "answer" else rationale
        if value is None:
            raise ValueError(
                "the answer format has a rationale, the row has none; add one (`tuyi rationalize`) or use answer: label"
            )
        return json.dumps(value, ensure_ascii=False)[1:-1] if segment.in_json else value


def _as_format(value: Any) -> Any:
    value = _named(value)
    return {"segments": value} if isinstance(value, list | tuple) else value


AnswerField = Annotated[AnswerFormat, BeforeValidator(_as_format)]
"""An :class:`AnswerFormat` as a task file writes it: a name of :data:`ANSWERS` or a list of segments."""
