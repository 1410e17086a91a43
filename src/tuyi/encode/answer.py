"""An answer format in tokens: what is forced, what the model writes, where it chooses a label.

Every segment is tokenised by itself, in training and in prediction: a decoder has to stop between segments, and a
token that reached over a seam in training could never be decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

from tuyi.task.answer import Choice, Free, Literal, Segment
from tuyi.task.task import Task

__all__ = ["AnswerTokens", "Chosen", "Forced", "LabelTokens", "Stage", "Written"]


@dataclass(frozen=True, slots=True)
class LabelTokens:
    """What may stand from the label on, up to the next free text or the end, which the terminator marks.

    Args:
        names: The labels.
        ids: Token ids for each label; where the answer has no free text, of the whole answer.
    """

    names: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]

    @property
    def branch_lengths(self) -> tuple[int, ...]:
        """Tokens that each label adds behind the prompt: all but the last, behind which nothing is asked."""
        return tuple(len(ids) - 1 for ids in self.ids)


@dataclass(frozen=True, slots=True)
class Forced:
    """Tokens that every answer has at this place."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Written:
    """Text that the model writes.

    Args:
        free: Which, and how much of it.
        stop: What follows it; empty where nothing fixed does.
        last: Whether the answer ends with it.
    """

    free: Free
    stop: str
    last: bool


@dataclass(frozen=True, slots=True)
class Chosen:
    """A label, with all that is certain once it is known."""

    labels: LabelTokens


Stage: TypeAlias = Forced | Written | Chosen


class AnswerTokens:
    """The answers of a task in tokens.

    Args:
        task: The task.
        tokens: Token ids of plain text.
        end: The terminator.
    """

    def __init__(self, task: Task, tokens: Callable[[str], tuple[int, ...]], end: int) -> None:
        self._format, self._tokens, self._end = task.answer, tokens, end
        names = task.labels.names if task.labels is not None else ()
        segments = task.answer.segments
        # without free text the whole answer is certain once the label is known
        chosen = (at for at, segment in enumerate(segments) if isinstance(segment, Choice))
        first = next(chosen, len(segments)) if task.answer.has_free else 0
        after = next((at for at in range(first, len(segments)) if isinstance(segments[at], Free)), len(segments))
        ends = (end,) if after == len(segments) else ()
        self.labels = LabelTokens(names, tuple((*self._ids(name, slice(first, after)), *ends) for name in names))
        """What may stand from the label on; of an open task nothing."""
        stages = tuple(self._stages(segments, first, after))
        opening = stages[0] if len(stages) > 1 and isinstance(stages[1], Written) else None
        self.opening = opening.ids if isinstance(opening, Forced) else ()
        """What stands before free text that comes first; it can pass the model with the prompt."""
        self.stages = stages[1:] if self.opening else stages
        """The way from there to the end of the answer."""

    def taught(self, label: str, rationale: str | None) -> tuple[int, ...]:
        """The answer of a training row, terminator included.

        Args:
            label, rationale: As for :meth:`~tuyi.task.answer.AnswerFormat.render`.

        Raises:
            ValueError: A rationale is needed and missing.
        """
        texts = self._format.texts(label, rationale)
        return (*(token for text in texts for token in self._tokens(text)), self._end)

    @cached_property
    def most(self) -> int:
        """Most tokens that an answer of prediction has, terminator included."""
        segments = self._format.segments
        free = sum(segment.max_tokens for segment in segments if isinstance(segment, Free))
        fixed = max(len(self._ids(name, slice(None))) for name in self.labels.names or ("",))
        return free + fixed + 1

    def _ids(self, label: str, part: slice) -> tuple[int, ...]:
        """Tokens of some segments, free text left out."""
        texts = zip(self._format.segments[part], self._format.texts(label, "")[part])
        return tuple(token for segment, text in texts if not isinstance(segment, Free) for token in self._tokens(text))

    def _stages(self, segments: tuple[Segment, ...], first: int, after: int) -> Iterator[Stage]:
        for at, segment in enumerate(segments):
            if isinstance(segment, Free):
                behind = segments[at + 1] if at + 1 < len(segments) else None
                yield Written(segment, behind.literal if isinstance(behind, Literal) else "", behind is None)
            elif at == first:
                yield Chosen(self.labels)
            elif first < at < after:
                continue  # certain once the label is known
            else:
                assert isinstance(segment, Literal), "a label stands in an answer once"
                ends = (self._end,) if at + 1 == len(segments) else ()
                yield Forced((*self._tokens(segment.literal), *ends))
