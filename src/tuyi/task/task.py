"""A task: labels, prompt, answer format and budgets, as one YAML file says them."""

from __future__ import annotations

import re
import string
from functools import cached_property

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tuyi.data.example import Example, Text, Turn
from tuyi.task.answer import AnswerField
from tuyi.task.labels import LabelSet
from tuyi.task.prompt import Prompt, between, join_texts, split_turns

__all__ = ["Budget", "ContentRule", "Task"]


class Budget(BaseModel):
    """How much of a row the model may see."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_tokens: int = Field(default=8192, gt=0)
    """Most tokens of a row, text and pictures together, answer included."""
    min_pixels: int = Field(default=3136, gt=0)
    """A smaller picture is scaled up to this many pixels."""
    max_pixels: int = Field(default=1_003_520, gt=0)
    """A larger picture is scaled down to this many pixels."""
    video_fps: float = Field(default=2.0, gt=0)
    """Frames taken from a second of video."""
    video_max_frames: int = Field(default=768, ge=4)
    """Most frames taken from one video."""
    video_max_pixels: int = Field(default=602_112, gt=0)
    """Most pixels of one video frame."""
    video_total_pixels: int = Field(default=19_267_584, gt=0)
    """Most pixels of all frames of one video together."""

    @model_validator(mode="after")
    def _ordered(self) -> Budget:
        if self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} is larger than max_pixels {self.max_pixels}")
        return self


class ContentRule(BaseModel):
    """How to find a row's own content inside a prompt that already carries the task's wording.

    Rows without both marks are taken whole.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    after: str = Field(min_length=1)
    before: str = Field(min_length=1)


class Task(BaseModel):
    """A closed question about pictures, video and dialogue."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$")
    about: str = ""
    """One line for people."""
    labels: LabelSet | None = None
    """The possible answers, in the order in which the prompt lists them; none for an open task."""
    prompt: str = "{content}"
    """The wording; ``{content}`` is the row, ``{labels}`` the quoted list, ``{definitions}`` a line per label."""
    system: str | None = None
    """System prompt; without one the model's own default is used."""
    answer: AnswerField = Field(default="label", validate_default=True)
    """The form of the answer: ``label``, ``reason``, ``open`` or a list of segments."""
    recognise: tuple[str, ...] = ()
    """A row that contains one of these texts is a row of this task."""
    content: ContentRule | None = None
    """How to find the row's own content where the row carries a whole prompt."""
    turn: str | None = None
    """Regular expression at the start of a line that begins a dialogue turn."""
    define: bool = False
    """Whether ``{labels}`` also brings each label's definition."""
    budget: Budget = Budget()

    @model_validator(mode="after")
    def _consistent(self) -> Task:
        try:
            fields = [field for _, field, _, _ in string.Formatter().parse(self.prompt) if field is not None]
        except ValueError as error:
            raise ValueError(f"prompt: {error}; write a literal brace twice: {{{{ }}}}") from error
        if unknown := sorted(set(fields) - {"content", "labels", "definitions"}):
            raise ValueError(
                f"prompt: unknown field {{{unknown[0]}}}, expected {{content}}, {{labels}}, {{definitions}}"
            )
        if fields.count("content") != 1:
            raise ValueError(f"prompt: expected {{content}} once, found it {fields.count('content')} times")
        if self.answer.has_choice and self.labels is None:
            raise ValueError("labels: the answer format asks for a label, the task lists none")
        if not self.answer.has_choice and self.labels is not None:
            raise ValueError("answer: the task lists labels, the answer format never asks for one")
        if not self.answer.has_choice and not self.answer.is_open:
            raise ValueError("answer: expected choice: label, or free: answer for an open task, found neither")
        if self.turn is not None:
            try:
                re.compile(self.turn)
            except re.error as error:
                raise ValueError(f"turn: not a regular expression: {error}") from error
        return self

    @cached_property
    def wording(self) -> tuple[str, str]:
        """The prompt before and after the content, labels filled in."""
        names = self.labels.names if self.labels else ()
        listed = "[" + ",".join(f'"{name}"' for name in names) + "]"
        defined = "\n".join(
            f"{item.name}：{item.definition}" if item.definition else item.name
            for item in (self.labels.labels if self.labels else ())
        )
        mark = "\0"
        text = self.prompt.format(
            content=mark, labels=f"{listed}\n{defined}" if self.define else listed, definitions=defined
        )
        head, tail = text.split(mark)
        return head, tail

    def recognises(self, example: Example) -> bool:
        """Whether the row names this task or carries its wording."""
        if example.task is not None:
            return example.task == self.name
        return any(mark in part.text for part in example.content if isinstance(part, Text) for mark in self.recognise)

    def ask(self, example: Example) -> Prompt:
        """The prompt for one example, in the task's wording."""
        parts = example.content
        if self.content is not None:
            parts = between(parts, self.content.after, self.content.before) or parts
        head, tail = self.wording
        history = example.history
        if self.system is not None and not any(turn.role == "system" for turn in history):
            history = (Turn("system", (Text(self.system),)), *history)
        turns = split_turns(join_texts(parts), self._turn_pattern)
        return Prompt(history=history, head=head, turns=turns, tail=tail)

    @cached_property
    def _turn_pattern(self) -> re.Pattern[str] | None:
        return re.compile(self.turn) if self.turn else None

    @property
    def is_chat(self) -> bool:
        """Whether the earlier answers of a conversation are answers of this task too, and learned with the last."""
        return self.labels is None

    def target(self, example: Example) -> str | None:
        """The answer that a labelled row teaches, in the task's own spelling; None for an unlabelled row.

        Raises:
            LabelError: The label is outside the set.
            ValueError: The answer needs a rationale that the row lacks.
        """
        if example.label is None:
            return None
        label = self.labels.canonical(example.label) if self.labels else example.label
        return self.answer.render(label, example.rationale)
