"""What the server does for whoever asks: over HTTP, or from its own page."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from tuyi.data.example import Example, Turn
from tuyi.predict.writing import Vocabulary
from tuyi.serve.asked import parsed
from tuyi.serve.asking import Chats, chat_tasks
from tuyi.serve.beginnings import owned
from tuyi.serve.chat import ChatRequest
from tuyi.serve.classify import ClassifyRequest, answered, row_of
from tuyi.serve.completion import Completion
from tuyi.serve.engine import Engine
from tuyi.serve.jobs import Answered, Job, Labelled, Piece, Row
from tuyi.serve.opening import Served
from tuyi.serve.refusals import RefusalError
from tuyi.serve.seeing import Seeing, Seen
from tuyi.serve.settings import ServeSettings
from tuyi.serve.shown import Shown
from tuyi.serve.videos import VideoReaders
from tuyi.serve.waiting import Gone, Watched
from tuyi.vision.video_process import VideoLimits

if TYPE_CHECKING:
    from tuyi.model.load import Model

__all__ = ["Service", "Talking"]


@dataclass(frozen=True, eq=False, slots=True)
class Talking:
    """An answer to a conversation that has begun; to be closed.

    Args:
        request: The conversation.
        completion: How events are spelled.
        first: The first event.
        watched: Where the others come from.
    """

    request: ChatRequest
    completion: Completion
    first: Labelled | Piece | Answered
    watched: Watched

    async def events(self) -> AsyncIterator[Labelled | Piece | Answered]:
        """All events; the last one is no :class:`Piece`.

        Raises:
            RefusalError: What became of the request.
        """
        event = self.first
        yield event
        while isinstance(event, Piece):
            event = await self.watched.event()
            yield event

    def close(self) -> None:
        """Nobody waits any more."""
        self.watched.close()


class Service:
    """Answers for one model.

    Args:
        served: The model.
        settings: Limits.
        engine: Who runs it.
    """

    def __init__(self, served: Served, settings: ServeSettings, engine: Engine) -> None:
        self.served, self.settings, self._engine = served, settings, engine
        task, model = next(iter(served.models.items()))
        tokenizer = model.frontend.tokenizer
        self._vocabulary = Vocabulary(tokenizer)
        self._end: int = tokenizer.convert_tokens_to_ids("<|im_end|>")
        tasks = chat_tasks(served.tasks, _context(served, model))
        self._videos = VideoReaders(VideoLimits(settings.max_video_pixels, settings.max_video_seconds))
        seen = Seen(settings.keep_media_bytes)
        self._encoder = Seeing(tokenizer, model.spec, served.tasks, self._videos, seen)
        self._chats = Chats(Seeing(tokenizer, model.spec, tasks, self._videos, seen), task, self._end, settings)

    def close(self) -> None:
        """End what it has begun, once nothing more is asked."""
        self._videos.close()

    @property
    def is_ready(self) -> bool:
        """Whether requests are answered."""
        return self._engine.is_ready

    @property
    def chats(self) -> bool:
        """Whether there is one model to talk with."""
        return len(set(map(id, self.served.models.values()))) == 1

    async def classify(
        self, body: bytes, gone: Gone, owner: bytes = b"", history: tuple[Turn, ...] = ()
    ) -> dict[str, Any]:
        """The label of a dialogue with pictures.

        Args:
            body: JSON of a :class:`~tuyi.serve.classify.ClassifyRequest`.
            gone: Returns once nobody waits any more.
            owner: Whose it is; what is kept of a request serves its owner's others alone.
            history: Earlier messages of a row of the server's own files, which no request can name.

        Raises:
            RefusalError: It is not answered.
        """
        asked: list[str] = []

        def read(job: Job) -> Row | Callable[[], Row]:
            found = parsed(ClassifyRequest, body)
            asked.append(found.id or f"classify-{uuid4().hex}")

            def row() -> Row:
                content = found.content(Shown(self.settings))
                example = Example(asked[0], content, task=found.task, history=history)
                encoder = self._encoder.of(owner, lambda: job.is_gone)
                return owned(row_of(example, encoder, self.settings.max_characters), owner)

            return row if found.is_slow else row()

        watched = Watched(self._engine, read, gone, self.settings.deadline_s)
        try:
            event = await watched.event()
        finally:
            watched.close()
        assert not isinstance(event, Piece), "nothing of a classification is told before its end"
        answer = answered(watched.job.asked, event, self.served.info)
        return {"id": asked[0], "model": self.served.name, **answer, "timing": _timing(watched, event)}

    async def chat(self, body: bytes, gone: Gone, owner: bytes = b"") -> Talking:
        """The answer to a conversation, from its first event on.

        Args:
            body: JSON of a :class:`~tuyi.serve.chat.ChatRequest`.
            gone: Returns once nobody waits any more.
            owner: Whose it is; what is kept of a request serves its owner's others alone.

        Raises:
            RefusalError: It is not answered.
        """
        asked: list[ChatRequest] = []

        def read(job: Job) -> Row | Callable[[], Row]:
            found = parsed(ChatRequest, body)
            if found.model is not None:
                self.check(found.model)
            if not self.chats:
                message = "this server has a model for each task, which answer /v1/classify; serve one of them to chat"
                raise RefusalError(400, message, code="no_chat")
            asked.append(found)

            def row() -> Row:
                chats = replace(self._chats, encoder=self._chats.encoder.of(owner, lambda: job.is_gone))
                return owned(chats.row(found, found.example(Shown(self.settings))), owner)

            return row if found.is_slow else row()

        watched = Watched(self._engine, read, gone, self.settings.deadline_s)
        try:
            event = await watched.event()
        except BaseException:
            watched.close()
            raise
        completion = Completion(asked[0], watched.job.asked, self.served.name, self._vocabulary, self._end)
        return Talking(asked[0], completion, event, watched)

    def check(self, name: str) -> None:
        """Refuse what is asked of another model.

        Raises:
            RefusalError: It is none of this name.
        """
        if name != self.served.name:
            message = f"model: expected {self.served.name!r}, found {name[:100]!r}"
            raise RefusalError(404, message, param="model", code="model_not_found")


def _context(served: Served, model: Model) -> int:
    """Most tokens of a conversation: what the model knows places for, and what passes it at once."""
    most: int = model.hf.config.text_config.max_position_embeddings
    return min(most, served.pack_tokens, served.cache_tokens)


def _timing(watched: Watched, event: Labelled | Answered) -> dict[str, Any]:
    job, now = watched.job, time.monotonic()
    read, whole = job.read_at - job.begun, now - job.arrived
    return {
        "read_ms": _ms(read),
        "queued_ms": _ms(whole - read - event.seconds),
        "model_ms": _ms(event.seconds),
        "total_ms": _ms(whole),
        "rows": event.rows,
    }


def _ms(seconds: float) -> float:
    return round(1000 * max(0.0, seconds), 2)
