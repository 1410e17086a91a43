"""Answers that are written: rows of many requests over one cache, joining and leaving between steps."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tuyi.encode.encoder import Encoder
from tuyi.encode.pack import group
from tuyi.model.decode import Decoder, Live
from tuyi.model.load import Model
from tuyi.model.sampling import Sampler, ranked
from tuyi.predict.underway import Underway, choose_labels, write_on
from tuyi.predict.writing import Vocabulary, Writing
from tuyi.serve.beginnings import Beginning, Beginnings
from tuyi.serve.jobs import Answered, Event, Job, Piece, Script, Token
from tuyi.serve.spoken import Spoken

__all__ = ["Writer"]


@dataclass(eq=False, slots=True, kw_only=True)
class _Row(Underway):
    """A row whose answer is under way.

    Args:
        job: Of whom.
        script: How its answer is written.
        vocabulary: The model's.
        spoken: The answer as text.
        sampler: Draws its tokens; the likeliest where None.
        begun: When its prompt had passed; monotonic seconds.
        cached: Tokens of its prompt that were in the cache.
        tokens: Those of free text, where they are to be told, the first ``sent`` of which are.
    """

    job: Job
    script: Script
    vocabulary: Vocabulary
    spoken: Spoken
    sampler: Sampler | None
    begun: float
    cached: int
    tokens: list[Token] = field(default_factory=list)
    sent: int = 0

    @property
    def is_plain(self) -> bool:
        """Whether the free text under way is told token by token: nothing of it can be taken back."""
        return self.is_writing and not self.written.free.in_json and not self.written.stop

    def told(self, ids: Sequence[int]) -> None:
        """The text of tokens that are whole characters, without those that end a turn."""
        self.spoken.add_text(b"".join(self.vocabulary[token] for token in ids).decode())


class Writer:
    """Writes answers; for one thread.

    Args:
        model: The model.
        encoder: Whose tokens answers have.
        cache_tokens: Tokens of all rows under way that the cache has room for.
        pack_tokens: Most tokens of a pass that scores labels.
        keep_tokens: Most tokens of rows that stay in the cache when they have ended; new ones never wait for them.
    """

    def __init__(
        self, model: Model, encoder: Encoder, cache_tokens: int, pack_tokens: int, keep_tokens: int | None = None
    ) -> None:
        self._model, self._encoder, self._pack_tokens = model, encoder, pack_tokens
        self._vocabulary = Vocabulary(model.frontend.tokenizer)
        self.cache_tokens = cache_tokens
        self._decoder = Decoder(model, cache_tokens)
        self._kept = Beginnings(cache_tokens if keep_tokens is None else min(keep_tokens, cache_tokens))
        self._rows: list[_Row] = []

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def jobs(self) -> list[Job]:
        """Of whom rows are under way."""
        return [row.job for row in self._rows]

    def join(self, jobs: Sequence[Job]) -> list[tuple[Job, Event]] | None:
        """Let rows join with their prompts; None, and nothing done, where there is no room for all of them."""
        found = self._make_room(jobs)
        if found is None:
            return None
        jobs = [*found, *(job for job in jobs if job not in found)]
        cached = [one.common(job.asked.encoded) for job, one in found.items()]
        lives, logits = self._pass(jobs, list(zip(found.values(), cached)))
        cached += [0] * (len(jobs) - len(found))
        begun = time.monotonic()
        rows = [self._row(job, live, begun, known) for job, live, known in zip(jobs, lives, cached)]
        self._rows += rows
        for row in rows:
            row.job.row = replace(row.job.asked, encoded=replace(row.job.asked.encoded, media=()))
            row.advance()
        writing = [at for at, row in enumerate(rows) if row.is_writing and not row.next]
        self._write([rows[at] for at in writing], logits[writing])
        return self._told()

    def step(self) -> list[tuple[Job, Event]]:
        """A token of every row that is written, and the labels of rows that have come to them."""
        self._drop_gone()
        choosing = [row for row in self._rows if row.is_choosing]
        for together in group(((row, row.choosing_tokens) for row in choosing), self._pack_tokens):
            choose_labels(self._model, self._decoder, together)
        writing = [row for row in self._rows if row.is_writing]
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
        self._kept = Beginnings(self._kept.most)
        return jobs

    def _make_room(self, jobs: Sequence[Job]) -> dict[Job, Beginning] | None:
        """The kept rows that prompts begin as, others dropped as far as the room is needed; None where it is not."""
        asked = {job: self._kept.find(job.asked.marks) for job in jobs}
        sizes = {job: len(job.asked.encoded) + job.asked.writes.most for job in jobs}
        cache = self._decoder.cache
        if not cache.fits(list(sizes.values()), self._kept.rooms):
            return None
        while True:
            found = {job: one for job, one in asked.items() if one is not None and one in self._kept}
            # as they are going to be taken
            if cache.fits([*(sizes[job] for job in found), *(sizes[job] for job in jobs if job not in found)]):
                return found
            oldest = self._kept.drop_oldest()
            assert oldest is not None, "there is room without them"
            self._decoder.leave([oldest])

    def _pass(self, jobs: Sequence[Job], known: Sequence[tuple[Beginning, int]]) -> tuple[list[Live], Tensor]:
        """Let prompts pass the model, the first of them from where they differ from what is known."""
        encoded = [job.asked.encoded for job in jobs]
        most = [job.asked.writes.most for job in jobs]
        lives: list[Live] = []
        logits: list[Tensor] = []
        if known:
            for row, extra, (one, length) in zip(encoded, most, known):
                live = self._decoder.fork(one.live, length, len(row) + extra)
                assert live is not None, "there is room"
                lives.append(live)
            behind = self._decoder.append(lives, encoded[: len(known)], most[: len(known)])
            assert behind is not None, "there is room"
            logits.append(behind)
        if len(known) < len(jobs):
            joined = self._decoder.join(encoded[len(known) :], most[len(known) :])
            assert joined is not None, "there is room"
            lives += joined[0]
            logits.append(joined[1])
        return lives, torch.cat(logits)

    def _row(self, job: Job, live: Live, begun: float, cached: int) -> _Row:
        script = job.asked.writes
        sampler = None if script.sampling is None else Sampler(script.sampling, self._model.device)
        row = _Row(
            job=job, script=script, vocabulary=self._vocabulary, live=live, stages=deque(script.stages),
            spoken=Spoken(script.stop), sampler=sampler, begun=begun, cached=cached, spent=job.asked.opening,
        )  # fmt: skip
        ids = job.asked.encoded.ids
        row.told([int(one) for one in ids[len(ids) - job.asked.opening :]])
        return row

    def _write(self, rows: Sequence[_Row], logits_RV: Tensor) -> None:
        """Choose the next token of every row."""
        scores_RV = ranked(logits_RV, [row.sampler for row in rows])
        taken = write_on(rows, scores_RV, self._vocabulary, self._encoder.tokens)
        for row, token, logits_V in zip(rows, taken, logits_RV):
            assert row.writing is not None, "it has just been written on"
            if token is not None:
                self._took(row, token, logits_V)
            if row.writing.is_over:
                self._end_text(row, row.writing)
            elif row.spoken.is_stopped:
                self._stop(row, row.writing)
            else:
                row.next = [row.writing.tokens[-1]]

    def _took(self, row: _Row, token: int, logits_V: Tensor) -> None:
        """A token of free text was taken."""
        if row.script.options is not None:
            row.tokens.append(_token(token, logits_V, row.script.options))
        if row.is_plain:
            row.spoken.add(self._vocabulary[token])

    def _stop(self, row: _Row, writing: Writing) -> None:
        """The text has come to one of its stops: what is behind it is not told, and nothing follows."""
        row.spent += len(writing.tokens)
        row.texts[row.written.free.free] = row.spoken.text
        row.stages.clear()

    def _end_text(self, row: _Row, writing: Writing) -> None:
        """Let a row's free text end, and tell it where that has waited for its end."""
        is_told = row.is_plain
        found = row.end_text(self._decoder)
        if not is_told:
            del row.tokens[len(row.tokens) - len(writing.tokens) + found.kept :]
            row.told([*writing.tokens[: found.kept], *found.rest])
        row.advance()

    def _told(self) -> list[tuple[Job, Event]]:
        """What there is to tell since the last step; rows that are at their end leave."""
        events: list[tuple[Job, Event]] = []
        done = [row for row in self._rows if row.is_over]
        for row in self._rows:
            text = row.spoken.new(is_over=row.is_over) if row.script.is_streamed else ""
            if text:
                events.append((row.job, Piece(text, row.tokens[row.sent :])))
                row.sent = len(row.tokens)
        seconds = time.monotonic()
        for row in done:
            answer = Answered(
                row.spoken.text, row.texts, row.label, row.logprobs, row.spent, row.cached, row.is_cut, row.tokens,
                len(self._rows), seconds - row.begun,
            )  # fmt: skip
            events.append((row.job, answer))
        self._leave(done)
        return events

    def _drop_gone(self) -> None:
        self._leave([row for row in self._rows if row.job.is_gone])

    def _leave(self, rows: Sequence[_Row]) -> None:
        """Rows end; what is kept of them stays in the cache."""
        for row in rows:
            row.live.room = self._decoder.cache.shrink(row.live.room, len(row.live))
            self._decoder.leave(self._kept.keep(row.live, row.job.asked))
        self._rows = [row for row in self._rows if row not in rows]


def _token(token: int, logits_V: Tensor, options: int) -> Token:
    logprobs_V = logits_V.log_softmax(0)
    best = torch.topk(logprobs_V, options) if options else None
    likeliest = () if best is None else tuple(zip(best.indices.tolist(), best.values.tolist()))
    return Token(token, float(logprobs_V[token]), likeliest)
