"""Answers with free text: rows written together over one cache, their labels scored on top of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

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
from tuyi.predict.underway import Underway, choose_labels, write_on
from tuyi.predict.writing import Vocabulary

__all__ = ["Answering"]

_WORTH = 4096
"""Tokens from which on a pass that scores labels is worth making while other rows are still written."""


@dataclass(eq=False, slots=True, kw_only=True)
class _Row(Underway):
    """A row whose answer is under way.

    Args:
        encoded: Its prompt, with the tokens that every answer begins with; no longer with its pixels.
    """

    encoded: Encoded


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
            _Row(encoded=replace(encoded, media=()), live=live, stages=deque(one.stages), spent=len(one.opening))
            for encoded, live, one in zip(ready.encoded, lives, answers)
        ]
        self._rows += rows
        for row in rows:
            row.advance()
        writing = [index for index, row in enumerate(rows) if row.is_writing and not row.next]
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
        choosing = [row for row in self._rows if row.is_choosing]
        writing = [row for row in self._rows if row.is_writing]
        sizes = [row.choosing_tokens for row in choosing]
        if choosing and (not writing or sum(sizes) >= _WORTH):
            for together in group(zip(choosing, sizes), self._pack_tokens):
                choose_labels(self._model, self._decoder, together)
                self._passed()
        else:
            logits = self._decoder.extend([row.live for row in writing], [row.next for row in writing])
            self._passed()
            for row in writing:
                row.next = []
            self._write(writing, logits)
        return self._finished()

    def _write(self, rows: Sequence[_Row], logits_RV: Tensor) -> None:
        """Choose the next token of every row: the likeliest that may stand there."""
        assert self._decoder is not None, "there are rows"
        write_on(rows, logits_RV, self._vocabulary, self._encoder.tokens)
        for row in rows:
            assert row.writing is not None, "it has just been written on"
            if row.writing.is_over:
                row.end_text(self._decoder)
                row.advance()
            else:
                row.next = [row.writing.tokens[-1]]

    def _finished(self) -> list[Prediction]:
        """Predictions of rows that are at their end; they leave."""
        done = [row for row in self._rows if row.is_over]
        if done:
            assert self._decoder is not None, "there are rows"
            self._decoder.leave([row.live for row in done])
            self._rows = [row for row in self._rows if not row.is_over]
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
