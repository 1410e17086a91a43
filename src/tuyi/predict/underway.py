"""Answers under way: what is certain, written and chosen of each, whoever it is written for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tuyi.encode.answer import Chosen, Forced, LabelTokens, Stage, Written
from tuyi.model.decode import Decoder, Live
from tuyi.model.load import Model
from tuyi.predict.scoring import gather_labels, score_tokens
from tuyi.predict.writing import FreeText, Vocabulary, Writing, take_likeliest

__all__ = ["Underway", "choose_labels", "write_on"]


@dataclass(eq=False, slots=True, kw_only=True)
class Underway:
    """A row in the cache whose answer is under way.

    Args:
        live: In the cache.
        stages: What is left of its answer.
        spent: Tokens of the answer so far.
        next: Tokens of the answer that have not passed the model.
        writing: Free text under way, its first token that of number ``begin``.
        texts: Its free texts by name.
        label, logprobs: The label that was chosen, and those of all labels.
        is_cut: Whether free text came to its limit.
    """

    live: Live
    stages: deque[Stage]
    spent: int = 0
    next: list[int] = field(default_factory=list)
    writing: Writing | None = None
    begin: int = 0
    texts: dict[str, str] = field(default_factory=dict)
    label: str | None = None
    logprobs: dict[str, float] = field(default_factory=dict)
    is_cut: bool = False

    @property
    def is_over(self) -> bool:
        """Whether nothing is left of the answer."""
        return not self.stages

    @property
    def is_writing(self) -> bool:
        """Whether the model is asked for free text next."""
        return bool(self.stages) and isinstance(self.stages[0], Written)

    @property
    def is_choosing(self) -> bool:
        """Whether the model is asked for a label next."""
        return bool(self.stages) and isinstance(self.stages[0], Chosen)

    @property
    def written(self) -> Written:
        """The free text that it is at."""
        stage = self.stages[0]
        assert isinstance(stage, Written), "a row that is written"
        return stage

    @property
    def labels(self) -> LabelTokens:
        """The labels that it is at."""
        stage = self.stages[0]
        assert isinstance(stage, Chosen), "a row at its label"
        return stage.labels

    @property
    def choosing_tokens(self) -> int:
        """Tokens of the pass that scores its labels."""
        return len(self.next) + sum(self.labels.branch_lengths)

    def told(self, ids: Sequence[int]) -> None:
        """Called with tokens that are certain, before they pass the model."""

    def advance(self) -> None:
        """Take up what is certain, up to where the model is asked again."""
        while self.stages and isinstance(forced := self.stages[0], Forced):
            self.stages.popleft()
            self._force(forced.ids)

    def end_text(self, decoder: Decoder) -> FreeText:
        """Let the free text end: what the model wrote beyond its end is forgotten. What is certain is not taken up."""
        writing, written = self.writing, self.written
        assert writing is not None, "its text is under way"
        found = writing.result()
        cached = len(self.live) - self.begin
        if found.kept < cached:
            decoder.cut(self.live, self.begin + found.kept)
        self.next = [*writing.tokens[cached : found.kept], *found.rest]
        self.spent += found.kept + len(found.rest) + (written.last and not found.is_cut)
        self.texts[written.free.free] = found.text
        self.is_cut |= found.is_cut
        self.writing = None
        self.stages.popleft()
        return found

    def take_label(self, logprobs: NDArray[np.float32]) -> None:
        """Go on with the likeliest label; the tokens before it have passed the model."""
        labels, best = self.labels, int(logprobs.argmax())
        self.label, self.logprobs = labels.names[best], dict(zip(labels.names, map(float, logprobs)))
        self.next = []
        self.stages.popleft()
        self._force(labels.ids[best])
        self.advance()

    def _force(self, ids: Sequence[int]) -> None:
        self.next.extend(ids)
        self.spent += len(ids)
        self.told(ids)


def write_on(
    rows: Sequence[Underway], scores_RV: Tensor, vocabulary: Vocabulary, encode: Callable[[str], tuple[int, ...]]
) -> list[int | None]:
    """Let every row take its next token of free text.

    Args:
        rows: Rows that are written.
        scores_RV: Of the tokens behind each, the one to try first highest.
        vocabulary: The model's.
        encode: Token ids of plain text.

    Returns:
        As :func:`~tuyi.predict.writing.take_likeliest`.
    """
    writings = []
    for row in rows:
        if row.writing is None:
            row.writing, row.begin = Writing(row.written, vocabulary, encode), len(row.live)
        writings.append(row.writing)
    return take_likeliest(writings, scores_RV)


def choose_labels(model: Model, decoder: Decoder, rows: Sequence[Underway]) -> None:
    """Score the labels of rows over the cache, in one pass; each goes on with its likeliest."""
    labels = [row.labels for row in rows]
    packed, batch = decoder.branch([row.live for row in rows], [row.next for row in rows], labels)
    scores = gather_labels(score_tokens(model, batch, packed).cpu(), packed, labels)
    for row, logprobs in zip(rows, scores):
        row.take_label(logprobs)
