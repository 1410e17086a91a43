"""An answer that a model writes by itself: the form that it is asked for, and what is read from what came.

One reader for every engine that gets text back: literals are found, free text is taken out of its JSON, the label is
brought into the task's own spelling.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tuyi.errors import LabelError
from tuyi.predict.decoded import END, Step
from tuyi.task.answer import AnswerFormat, Choice, Free, Literal, Segment
from tuyi.task.labels import LabelSet
from tuyi.task.task import Task

__all__ = ["AnswerForm", "Cut", "Said", "WrongAnswerError", "label_object"]

_BODY = re.compile(r'(?:[^"\\]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*')
"""The inside of a JSON string, as far as it is one."""
_ASKED_BODY = r'([^"\\\x00-\x1F]|\\["\\/bfnrt])*'
"""The same as it is asked for: no control character, and no escape that could be half of a surrogate pair."""
_FENCE = re.compile(r"```\w*\s*(.*?)\s*```", re.DOTALL)
_MARK = "\ue000{}\ue001"


class WrongAnswerError(Exception):
    """An answer that is not of the form that was asked for; says what was expected and what came."""


@dataclass(frozen=True, slots=True)
class Said:
    """What an answer says.

    Args:
        label: The label in the task's spelling; for an open task the text.
        rationale: The reason, out of its JSON; None where the form has none.
        before, after: What stands in the answer before and after the label; None where it stands there in other words
            than the form's.
    """

    label: str
    rationale: str | None = None
    before: str | None = None
    after: str | None = None


@dataclass(frozen=True, slots=True)
class Cut:
    """An answer that has to go on.

    Args:
        start: The answer so far; it ends with free text.
        rest: What is still to be written; None where nothing is.
        is_free: Whether the free text came to its limit.
    """

    start: str
    rest: AnswerForm | None
    is_free: bool


@dataclass(frozen=True)
class AnswerForm:
    """The form of an answer, with the labels that it chooses from.

    Args:
        answer: The segments.
        labels: The labels; None for an open task.
        is_rest: Whether it is the rest of a JSON answer.
    """

    answer: AnswerFormat
    labels: LabelSet | None
    is_rest: bool = False

    @classmethod
    def of(cls, task: Task) -> AnswerForm:
        """The form in which a task is answered."""
        return cls(task.answer, task.labels)

    @property
    def is_open(self) -> bool:
        """Whether the answer is free text and nothing else."""
        return all(isinstance(segment, Free) for segment in self.answer.segments)

    @cached_property
    def in_json(self) -> bool:
        """Whether what the model writes stands inside JSON strings."""
        free = (segment.in_json for segment in self.answer.segments if isinstance(segment, Free))
        return self.is_rest or any(free) or self._keys is not None

    @cached_property
    def spelled(self) -> dict[str, str]:
        """Each label as it is written in the answer."""
        names = self.labels.names if self.labels else ()
        return {name: json.dumps(name, ensure_ascii=False)[1:-1] if self.in_json else name for name in names}

    @property
    def room(self) -> int:
        """The most tokens that the answer can have, its terminator included: literals and labels byte by byte."""
        return 1 + sum(map(self._most, self.answer.segments))

    def first_room(self, tokens: Callable[[str], Sequence[int]]) -> int:
        """The most tokens of a first call: up to where the first free text has come to its limit.

        What follows finds its place in it where that text is shorter, and takes a call of its own where not; so the
        answer never has more tokens than its parts.

        Args:
            tokens: Token ids of plain text.
        """
        total = 0
        for segment in self.answer.segments:
            if isinstance(segment, Free):
                return total + segment.max_tokens
            total += len(tokens(segment.literal)) if isinstance(segment, Literal) else self._most(segment)
        return self.room

    def _most(self, segment: Segment) -> int:
        if isinstance(segment, Free):
            return segment.max_tokens
        if isinstance(segment, Literal):
            return len(segment.literal.encode())
        return max(len(text.encode()) for text in self.spelled.values())

    @property
    def shown(self) -> str:
        """The form for people, ``…`` where the model writes."""
        return "".join(part.literal if isinstance(part, Literal) else "…" for part in self.answer.segments)

    @property
    def fixed(self) -> str | None:
        """The answer where it has no choice and nothing free; None otherwise."""
        return self.shown if all(isinstance(part, Literal) for part in self.answer.segments) else None

    @cached_property
    def regex(self) -> str:
        """A regular expression for exactly the answers of this form, in what all constrained decoders read."""
        parts = []
        for segment in self.answer.segments:
            if isinstance(segment, Literal):
                parts.append(_escaped(segment.literal))
            elif isinstance(segment, Choice):
                parts.append("(" + "|".join(map(_escaped, self.spelled.values())) + ")")
            else:
                parts.append(_ASKED_BODY if segment.in_json else r"(.|\n)*")
        return "".join(parts)

    @cached_property
    def schema(self) -> dict[str, Any] | None:
        """A ``response_format`` for answers of this form; None where they are no JSON object of texts."""
        if self._keys is None:
            return None
        kinds = {
            key: {"type": "string"} | ({"enum": list(self.spelled)} if isinstance(segment, Choice) else {})
            for key, segment in self._keys.items()
        }
        schema = {"type": "object", "properties": kinds, "required": list(kinds), "additionalProperties": False}
        return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}

    def read(self, text: str) -> Said:
        """What an answer says.

        Raises:
            WrongAnswerError: It is of another form, names no label, or is empty.
        """
        said = self._from_object(text)
        if said is not None:
            return said
        ends = self._walk(text)
        if len(ends) < len(self.answer.segments) or text[ends[-1] :].strip():
            raise WrongAnswerError(f"expected {self.shown}, found {text[:200]!r}")
        return self._from_segments(text, ends)

    def cut(self, text: str, steps: Sequence[Step], *, is_cut: bool) -> Cut | None:
        """Where an answer has to go on: behind free text that came to its limit, or that left no room for the rest.

        Args:
            text: The answer.
            steps: Its tokens; empty where nobody told them.
            is_cut: Whether it ended for want of room.

        Returns:
            None where the answer is whole.
        """
        ends = self._walk(text)
        begins = [len(text) - len(text.lstrip()), *ends]
        reached = list(enumerate(self.answer.segments))[: len(begins)]
        frees = [(number, segment) for number, segment in reached if isinstance(segment, Free)]
        for number, segment in frees:
            end = ends[number] if number < len(ends) else len(text)
            to = _limit(text, steps, begins[number], end, segment.max_tokens)
            is_last = number == len(self.answer.segments) - 1
            if to is None and is_cut and (number >= len(ends) or is_last):
                to = len(text)
            if to is not None:
                to = _body_end(text[:to], begins[number]) if segment.in_json else to
                return self._cut_at(text[:to], number, is_free=True)
        is_whole = len(ends) == len(self.answer.segments) and not isinstance(self.answer.segments[-1], Choice)
        if is_cut and not is_whole and frees:
            number, _ = frees[-1]
            return self._cut_at(text[: ends[number]], number, is_free=False)
        return None

    def _cut_at(self, start: str, number: int, *, is_free: bool) -> Cut:
        rest = self.answer.segments[number + 1 :]
        left = AnswerForm(AnswerFormat(segments=rest), self.labels, self.in_json) if rest else None
        return Cut(start, left, is_free)

    def _walk(self, text: str) -> list[int]:
        """Where each segment ends in the text, as far as the text goes."""
        at, ends = len(text) - len(text.lstrip()), list[int]()
        if isinstance(self.answer.segments[0], Free):
            at = 0
        following: list[Segment | None] = [*self.answer.segments[1:], None]
        for segment, after in zip(self.answer.segments, following):
            if isinstance(segment, Literal):
                if not text.startswith(segment.literal, at):
                    return ends
                at += len(segment.literal)
            elif isinstance(segment, Free) and segment.in_json:
                at = _body_end(text, at)
                if after is not None and text[at : at + 1] in ("", "\\"):  # not ended, or within an escape
                    return ends
            elif isinstance(after, Literal):
                if (found := text.find(after.literal, at)) < 0:
                    return ends
                at = found
            else:
                at = len(text)
            ends.append(at)
        return ends

    def _from_segments(self, text: str, ends: Sequence[int]) -> Said:
        values: dict[str, str] = {}
        before = after = None
        for segment, begin, end in zip(self.answer.segments, [0, *ends], ends):
            written = text[begin:end]
            if isinstance(segment, Choice):
                label = _unescaped(written) if self.in_json and _body_end(written, 0) == len(written) else written
                values["label"], before, after = label, text[:begin], text[end:]
            elif isinstance(segment, Free):
                values.setdefault(segment.free, _unescaped(written) if segment.in_json else written)
        return self._checked(values, text, before, after)

    def _from_object(self, text: str) -> Said | None:
        """What a JSON object says, however it is spaced, in a fence or not; None where the answer is none."""
        if self._keys is None:
            return None
        inner = fence[1] if (fence := _FENCE.search(text)) else text
        try:
            value = json.loads(inner, strict=False)
        except json.JSONDecodeError:
            return None
        if not isinstance(value, dict) or not all(isinstance(value.get(key), str) for key in self._keys):
            return None
        values: dict[str, str] = {}
        before = after = None
        for key, segment in self._keys.items():
            values.setdefault(segment.free if isinstance(segment, Free) else "label", value[key])
            if isinstance(segment, Choice):
                where = re.escape(json.dumps(key, ensure_ascii=False)) + rf'\s*:\s*"({_BODY.pattern})"'
                for found in re.finditer(where, text):
                    before, after = text[: found.start(1)], text[found.end(1) :]
        return self._checked(values, text, before, after)

    def _checked(self, values: dict[str, str], text: str, before: str | None, after: str | None) -> Said:
        if any("\ud800" <= sign <= "\udfff" for value in values.values() for sign in value):
            raise WrongAnswerError(f"expected text, found half of a surrogate pair in {text[:200]!r}")
        rationale = values.get("rationale")
        if self.labels is None:
            if not values["answer"].strip():
                raise WrongAnswerError(f"expected text, found {text[:200]!r}")
            return Said(values["answer"], rationale)
        try:
            label = self.labels.canonical(values["label"])
        except LabelError as error:
            raise WrongAnswerError(f"expected one of {len(self.labels)} labels, found {text[:200]!r}") from error
        return Said(label, rationale, before, after)

    @cached_property
    def _keys(self) -> dict[str, Free | Choice] | None:
        """The model's own segments by their key, where the form is a JSON object of texts."""
        own = {_MARK.format(n): part for n, part in enumerate(self.answer.segments) if not isinstance(part, Literal)}
        marks = iter(own)
        marked = [part.literal if isinstance(part, Literal) else next(marks) for part in self.answer.segments]
        try:
            value = json.loads("".join(marked))
        except json.JSONDecodeError:
            return None
        if not isinstance(value, dict) or sorted(map(str, value.values())) != sorted(own):
            return None
        return {key: own[mark] for key, mark in value.items()}


def label_object(labels: LabelSet) -> AnswerForm:
    """The form ``{"label": "…"}``, for servers that constrain answers by a JSON schema alone."""
    return AnswerForm(AnswerFormat(segments=(Literal(literal='{"label": "'), Choice(), Literal(literal='"}'))), labels)


def _escaped(text: str) -> str:
    """A text as a regular expression; other signs need no escape, and some decoders warn of it."""
    return re.sub(r"[\\.^$*+?{}\[\]|()]", lambda sign: "\\" + sign[0], text)


def _body_end(text: str, begin: int) -> int:
    match = _BODY.match(text, begin)
    assert match is not None
    return match.end()


def _unescaped(body: str) -> str:
    text: str = json.loads(f'"{body}"', strict=False)
    return text


def _limit(text: str, steps: Sequence[Step], begin: int, end: int, most: int) -> int | None:
    """The character at which a stretch has had ``most`` tokens; None where it has no more than that."""
    first, last, at, tokens = len(text[:begin].encode()), len(text[:end].encode()), 0, 0
    for step in steps:
        if step.chosen == END:
            break
        if first <= at < last:
            if tokens == most:
                return len(text.encode()[:at].decode(errors="ignore"))
            tokens += 1
        at += len(step.chosen)
    return None
