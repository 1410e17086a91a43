"""Answers with free text: rows written together over one cache, their labels scored on top of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tuyi.encode.answer import Chosen, Forced, Stage, Written
from tuyi.encode.encoded import Encoded
from tuyi.encode.encoder import Encoder
from tuyi.encode.pack import group
from tuyi.model.decode import Decoder, Live
from tuyi.model.folder import FolderInfo
from tuyi.model.kept import Kept
from tuyi.model.load import Model
from tuyi.predict.calibrated import calibrated
from tuyi.predict.feed import Ready
from tuyi.predict.prediction import Prediction
from tuyi.predict.scoring import gather_labels, score_tokens
from tuyi.predict.writing import Vocabulary, Writing

__all__ = ["Answering"]

_TRIED = 16
"""Likeliest tokens that are looked at first; the others only where none of these may stand."""
_WORTH = 4096
"""Tokens from which on a pass that scores labels is worth making while other rows are still written."""


@dataclass(eq=False, slots=True)
class _Row:
    """A row whose answer is under way.

    Args:
        encoded: Its prompt, with the tokens that every answer begins with; no longer with its pixels.
        live: In the cache.
        stages: What is left of its answer.
        spent: Tokens of the answer so far.
        next: Tokens of the answer that have not passed the model.
        writing: Free text under way, its first token that of number ``begin``.
    """

    encoded: Encoded
    live: Live
    stages: deque[Stage]
    spent: int
    next: list[int] = field(default_factory=list)
    writing: Writing | None = None
    begin: int = 0
    texts: dict[str, str] = field(default_factory=dict)
    label: str | None = None
    logprobs: dict[str, float] = field(default_factory=dict)
    is_cut: bool = False

    def force(self, ids: Sequence[int]) -> None:
        """Go on with tokens that are certain."""
        self.next.extend(ids)
        self.spent += len(ids)


class Answering:
    """Answers rows of which some is written freely.

    Rows join with their prompts as packs come, as long as the cache has room; then all go on together, a token a step,
    and leave as they end. What is certain passes the model with what comes next and costs no step.

    Args:
        model, encoder: The model and what encoded the rows.
        cache_tokens: Tokens of all rows under way that the cache has room for.
        pack_tokens: Most tokens of a pass that scores labels.
        info: Where the calibration temperatures come from.
        passed: Called after every pass.
    """

    def __init__(
        self, model: Model, encoder: Encoder, *, cache_tokens: int, pack_tokens: int, info: FolderInfo | None,
        passed: Callable[[], None],
    ) -> None:  # fmt: skip
        self._model, self._encoder, self._info, self._passed = model, encoder, info, passed
        self._cache_tokens, self._pack_tokens = cache_tokens, pack_tokens
        self._vocabulary = Vocabulary(model.frontend.tokenizer)
        self._decoder: Decoder | None = None
        self._rows: list[_Row] = []

    def take(self, ready: Ready, kept: Kept) -> Generator[list[Prediction], None, None]:
        """Let a pack's rows join, once there is room; predictions of the rows that end meanwhile."""
        answers = [self._encoder.answers(self._encoder.tasks[row.task]) for row in ready.encoded]
        more = [one.most for one in answers]
        needed = sum(map(len, ready.encoded)) + sum(more)
        while (joined := self._join(ready, more, needed, kept)) is None:
            if done := self._step():
                yield done
        self._passed()
        lives, logits = joined
        rows = [
            _Row(replace(encoded, media=()), live, deque(one.stages), len(one.opening))
            for encoded, live, one in zip(ready.encoded, lives, answers)
        ]
        self._rows += rows
        for row in rows:
            self._advance(row)
        writing = [index for index, row in enumerate(rows) if isinstance(row.stages[0], Written) and not row.next]
        self._write([rows[index] for index in writing], logits[writing])
        if done := self._finished():
            yield done

    def rest(self) -> Iterator[list[Prediction]]:
        """Predictions of all rows that are under way."""
        while self._rows:
            if done := self._step():
                yield done

    def clear(self) -> None:
        """Forget all rows and give the cache's memory back."""
        self._rows.clear()
        self._decoder = None

    def _join(self, ready: Ready, more: Sequence[int], needed: int, kept: Kept) -> tuple[list[Live], Tensor] | None:
        if self._decoder is None or (self._decoder.cache.tokens < needed and not self._rows):
            self._decoder = None  # first the old cache goes
            self._decoder = Decoder(self._model, max(self._cache_tokens, needed))
        return self._decoder.join(ready.encoded, more, kept=kept, ready=(ready.pack, ready.batch))

    def _step(self) -> list[Prediction]:
        """One pass: a token of every row that is written, or the labels of rows that have come to them."""
        assert self._decoder is not None, "there are rows"
        choosing = [row for row in self._rows if isinstance(row.stages[0], Chosen)]
        writing = [row for row in self._rows if isinstance(row.stages[0], Written)]
        sizes = [len(row.next) + sum(_chosen(row).labels.branch_lengths) for row in choosing]
        if choosing and (not writing or sum(sizes) >= _WORTH):
            for together in group(zip(choosing, sizes), self._pack_tokens):
                self._choose(together)
        else:
            logits = self._decoder.extend([row.live for row in writing], [row.next for row in writing])
            self._passed()
            for row in writing:
                row.next = []
            self._write(writing, logits)
        return self._finished()

    def _write(self, rows: Sequence[_Row], logits_RV: Tensor) -> None:
        """Choose the next token of every row: the likeliest that may stand there."""
        if not rows:
            return
        first = logits_RV.topk(min(_TRIED, logits_RV.shape[1])).indices.tolist()
        for index, (row, tokens) in enumerate(zip(rows, first)):
            written = row.stages[0]
            assert isinstance(written, Written), "a row that is written"
            if row.writing is None:
                row.writing, row.begin = Writing(written, self._vocabulary, self._encoder.tokens), len(row.live)
            if not row.writing.take(tokens):
                row.writing.take(logits_RV[index].argsort(descending=True).tolist())
            if row.writing.is_over:
                self._end_text(row, row.writing, written)
            else:
                row.next = [row.writing.tokens[-1]]

    def _end_text(self, row: _Row, writing: Writing, written: Written) -> None:
        """Let a row's free text end: what the model wrote beyond its end is forgotten."""
        assert self._decoder is not None, "there are rows"
        found = writing.result()
        cached = len(row.live) - row.begin
        if found.kept < cached:
            self._decoder.cut(row.live, row.begin + found.kept)
        row.next = [*writing.tokens[cached : found.kept], *found.rest]
        row.spent += found.kept + len(found.rest) + (written.last and not found.is_cut)
        row.texts[written.free.free] = found.text
        row.is_cut |= found.is_cut
        row.writing = None
        row.stages.popleft()
        self._advance(row)

    def _choose(self, rows: Sequence[_Row]) -> None:
        """Score the labels of rows; each goes on with its likeliest."""
        assert self._decoder is not None, "there are rows"
        labels = [_chosen(row).labels for row in rows]
        packed, batch = self._decoder.branch([row.live for row in rows], [row.next for row in rows], labels)
        scores = gather_labels(score_tokens(self._model, batch, packed).cpu(), packed, labels)
        self._passed()
        for row, one, logprobs in zip(rows, labels, scores):
            row.next = []
            self._label(row, one.names, one.ids, logprobs)

    def _label(
        self, row: _Row, names: Sequence[str], ids: Sequence[Sequence[int]], logprobs: NDArray[np.float32]
    ) -> None:
        best = int(logprobs.argmax())
        row.label, row.logprobs = names[best], dict(zip(names, map(float, logprobs)))
        row.force(ids[best])
        row.stages.popleft()
        self._advance(row)

    def _advance(self, row: _Row) -> None:
        """Take up what is certain, up to where the model is asked again."""
        while row.stages and isinstance(forced := row.stages[0], Forced):
            row.force(forced.ids)
            row.stages.popleft()

    def _finished(self) -> list[Prediction]:
        """Predictions of rows that are at their end; they leave."""
        done = [row for row in self._rows if not row.stages]
        if done:
            assert self._decoder is not None, "there are rows"
            self._decoder.leave([row.live for row in done])
            self._rows = [row for row in self._rows if row.stages]
        return [self._prediction(row) for row in done]

    def _prediction(self, row: _Row) -> Prediction:
        encoded, answers = row.encoded, self._encoder.answers(self._encoder.tasks[row.encoded.task])
        notes = {**encoded.notes, "tokens": len(encoded) - len(answers.opening), "calls": 1, "output_tokens": row.spent}
        if row.is_cut:
            notes["cut_free"] = True
        return Prediction(
            id=encoded.id,
            task=encoded.task,
            label=row.texts["answer"] if row.label is None else row.label,
            logprobs=row.logprobs,
            probabilities=calibrated(row.logprobs, self._info, encoded.task) if row.logprobs else {},
            rationale=row.texts.get("rationale"),
            notes=notes,
        )


def _chosen(row: _Row) -> Chosen:
    stage = row.stages[0]
    assert isinstance(stage, Chosen), "a row at its label"
    return stage
