"""Answers that are written: rows of many requests over one cache, joining and leaving between steps."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tuyi.encode.answer import Chosen, Forced, Stage, Written
from tuyi.encode.encoder import Encoder
from tuyi.encode.pack import group
from tuyi.model.decode import Decoder, Live
from tuyi.model.load import Model
from tuyi.model.sampling import Sampler, ranked
from tuyi.predict.scoring import gather_labels, score_tokens
from tuyi.predict.writing import Vocabulary, Writing
from tuyi.serve.jobs import Answered, Event, Job, Piece, Script, Token
from tuyi.serve.spoken import Spoken

__all__ = ["Writer"]

_TRIED = 16
"""Likeliest tokens that are looked at first; the others only where none of these may stand."""


@dataclass(eq=False, slots=True)
class _Row:
    """A row whose answer is under way.

    Args:
        job: Of whom.
        live: In the cache.
        stages: What is left of its answer.
        next: Tokens of the answer that have not passed the model.
        writing: Free text under way, its first token that of number ``begin``.
    """

    job: Job
    script: Script
    live: Live
    stages: deque[Stage]
    spoken: Spoken
    sampler: Sampler | None
    begun: float
    next: list[int] = field(default_factory=list)
    writing: Writing | None = None
    begin: int = 0
    spent: int = 0
    texts: dict[str, str] = field(default_factory=dict)
    label: str | None = None
    logprobs: dict[str, float] = field(default_factory=dict)
    tokens: list[Token] = field(default_factory=list)
    told: int = 0
    is_cut: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether the free text under way is told token by token: nothing of it can be taken back."""
        stage = self.stages[0]
        return isinstance(stage, Written) and not stage.free.in_json and not stage.stop


class Writer:
    """Writes answers; for one thread.

    Args:
        model: The model.
        encoder: Whose tokens answers have.
        cache_tokens: Tokens of all rows under way that the cache has room for.
        pack_tokens: Most tokens of a pass that scores labels.
    """

    def __init__(self, model: Model, encoder: Encoder, cache_tokens: int, pack_tokens: int) -> None:
        self._model, self._encoder, self._pack_tokens = model, encoder, pack_tokens
        self._vocabulary = Vocabulary(model.frontend.tokenizer)
        self.cache_tokens = cache_tokens
        self._decoder = Decoder(model, cache_tokens)
        self._rows: list[_Row] = []

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def jobs(self) -> list[Job]:
        """Of whom rows are under way."""
        return [row.job for row in self._rows]

    def join(self, jobs: Sequence[Job]) -> list[tuple[Job, Event]] | None:
        """Let rows join with their prompts; None, and nothing done, where there is no room for all of them."""
        scripts = [job.asked.writes for job in jobs]
        joined = self._decoder.join([job.asked.encoded for job in jobs], [script.most for script in scripts])
        if joined is None:
            return None
        lives, logits = joined
        begun = time.monotonic()
        rows = [self._row(job, script, live, begun) for job, script, live in zip(jobs, scripts, lives)]
        self._rows += rows
        for row in rows:
            row.job.row = replace(row.job.asked, encoded=replace(row.job.asked.encoded, media=()))
            self._advance(row)
        writing = [at for at, row in enumerate(rows) if isinstance(row.stages[0], Written) and not row.next]
        self._write([rows[at] for at in writing], logits[writing])
        return self._told()

    def step(self) -> list[tuple[Job, Event]]:
        """A token of every row that is written, and the labels of rows that have come to them."""
        self._drop_gone()
        choosing = [row for row in self._rows if isinstance(row.stages[0], Chosen)]
        sizes = [len(row.next) + sum(_chosen(row).labels.branch_lengths) for row in choosing]
        for together in group(zip(choosing, sizes), self._pack_tokens):
            self._choose(together)
        writing = [row for row in self._rows if row.stages and isinstance(row.stages[0], Written)]
        if writing:
            logits = self._decoder.extend([row.live for row in writing], [row.next for row in writing])
            for row in writing:
                row.next = []
            self._write(writing, logits)
        return self._told()

    def clear(self) -> list[Job]:
        """Forget all rows, as after a step that failed; whose they were."""
        jobs = self.jobs
        self._rows = []
        self._decoder = Decoder(self._model, self.cache_tokens)
        return jobs

    def _row(self, job: Job, script: Script, live: Live, begun: float) -> _Row:
        sampler = None if script.sampling is None else Sampler(script.sampling, self._model.device)
        row = _Row(job, script, live, deque(script.stages), Spoken(script.stop), sampler, begun)
        ids = job.asked.encoded.ids
        row.spent = job.asked.opening
        row.spoken.add_text(self._text([int(one) for one in ids[len(ids) - job.asked.opening :]]))
        return row

    def _write(self, rows: Sequence[_Row], logits_RV: Tensor) -> None:
        """Choose the next token of every row."""
        if not rows:
            return
        scores_RV = ranked(logits_RV, [row.sampler for row in rows])
        first = scores_RV.topk(min(_TRIED, scores_RV.shape[1])).indices.tolist()
        for at, (row, tokens) in enumerate(zip(rows, first)):
            written = row.stages[0]
            assert isinstance(written, Written), "a row that is written"
            if row.writing is None:
                row.writing = Writing(written, self._vocabulary, self._encoder.tokens)
                row.begin = len(row.live)
            before = len(row.writing.tokens)
            if not row.writing.take(tokens):
                row.writing.take(scores_RV[at].argsort(descending=True).tolist())
            if len(row.writing.tokens) > before:
                self._took(row, row.writing.tokens[-1], logits_RV[at])
            if row.writing.is_over:
                self._end_text(row, row.writing, written)
            elif row.spoken.is_stopped:
                self._stop(row, row.writing, written)
            else:
                row.next = [row.writing.tokens[-1]]

    def _took(self, row: _Row, token: int, logits_V: Tensor) -> None:
        """A token of free text was taken."""
        if row.script.options is not None:
            row.tokens.append(_token(token, logits_V, row.script.options))
        if row.is_plain:
            row.spoken.add(self._vocabulary[token])

    def _stop(self, row: _Row, writing: Writing, written: Written) -> None:
        """The text has come to one of its stops: what is behind it is not told, and nothing follows."""
        row.spent += len(writing.tokens)
        row.texts[written.free.free] = row.spoken.text
        row.stages.clear()

    def _end_text(self, row: _Row, writing: Writing, written: Written) -> None:
        """Let a row's free text end: what the model wrote beyond its end is forgotten."""
        found = writing.result()
        cached = len(row.live) - row.begin
        if found.kept < cached:
            self._decoder.cut(row.live, row.begin + found.kept)
        row.next = [*writing.tokens[cached : found.kept], *found.rest]
        row.spent += found.kept + len(found.rest) + (written.last and not found.is_cut)
        if not row.is_plain:
            del row.tokens[len(row.tokens) - len(writing.tokens) + found.kept :]
            row.spoken.add_text(self._text([*writing.tokens[: found.kept], *found.rest]))
        row.texts[written.free.free] = found.text
        row.is_cut |= found.is_cut
        row.writing = None
        row.stages.popleft()
        self._advance(row)

    def _choose(self, rows: Sequence[_Row]) -> None:
        """Score the labels of rows; each goes on with its likeliest."""
        labels = [_chosen(row).labels for row in rows]
        packed, batch = self._decoder.branch([row.live for row in rows], [row.next for row in rows], labels)
        scores = gather_labels(score_tokens(self._model, batch, packed).cpu(), packed, labels)
        for row, one, logprobs in zip(rows, labels, scores):
            best = int(logprobs.argmax())
            row.label, row.logprobs = one.names[best], dict(zip(one.names, map(float, logprobs)))
            row.next = []
            row.stages.popleft()
            self._force(row, one.ids[best])
            self._advance(row)

    def _advance(self, row: _Row) -> None:
        """Take up what is certain, up to where the model is asked again."""
        while row.stages and isinstance(forced := row.stages[0], Forced):
            row.stages.popleft()
            self._force(row, forced.ids)

    def _force(self, row: _Row, ids: Sequence[int]) -> None:
        row.next.extend(ids)
        row.spent += len(ids)
        row.spoken.add_text(self._text(ids))

    def _text(self, ids: Sequence[int]) -> str:
        """Tokens of whole characters as text, without those that end a turn."""
        return b"".join(self._vocabulary[token] for token in ids).decode()

    def _told(self) -> list[tuple[Job, Event]]:
        """What there is to tell since the last step; rows that are at their end leave."""
        events: list[tuple[Job, Event]] = []
        done = [row for row in self._rows if not row.stages]
        for row in self._rows:
            text = row.spoken.new(is_over=not row.stages) if row.script.is_streamed else ""
            if text:
                events.append((row.job, Piece(text, row.tokens[row.told :])))
                row.told = len(row.tokens)
        seconds = time.monotonic()
        for row in done:
            answer = Answered(
                row.spoken.text, row.texts, row.label, row.logprobs, row.spent, row.is_cut, row.tokens,
                len(self._rows), seconds - row.begun,
            )  # fmt: skip
            events.append((row.job, answer))
        self._leave(done)
        return events

    def _drop_gone(self) -> None:
        self._leave([row for row in self._rows if row.job.is_gone])

    def _leave(self, rows: Sequence[_Row]) -> None:
        self._decoder.leave([row.live for row in rows])
        self._rows = [row for row in self._rows if row not in rows]


def _token(token: int, logits_V: Tensor, options: int) -> Token:
    logprobs_V = logits_V.log_softmax(0)
    best = torch.topk(logprobs_V, options) if options else None
    likeliest = () if best is None else tuple(zip(best.indices.tolist(), best.values.tolist()))
    return Token(token, float(logprobs_V[token]), likeliest)


def _chosen(row: _Row) -> Chosen:
    stage = row.stages[0]
    assert isinstance(stage, Chosen), "a row at its label"
    return stage
