"""The routes, and how each is answered."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from fastapi import FastAPI, Request, Response
from starlette.requests import ClientDisconnect

from tuyi.data.example import Example, Image
from tuyi.encode.encoder import Encoder
from tuyi.predict.writing import Vocabulary
from tuyi.serve.asked import parsed
from tuyi.serve.asking import Chats, chat_tasks
from tuyi.serve.chat import ChatRequest
from tuyi.serve.classify import ClassifyRequest, answered, row_of
from tuyi.serve.completion import Completion
from tuyi.serve.engine import Engine
from tuyi.serve.hosts import fetch
from tuyi.serve.jobs import Answered, Labelled, Piece, Row
from tuyi.serve.metrics import Metrics
from tuyi.serve.opening import Served
from tuyi.serve.pictures import checked, from_data_url
from tuyi.serve.refusals import RefusalError
from tuyi.serve.settings import ServeSettings
from tuyi.serve.stream import Stream
from tuyi.serve.waiting import ClientGoneError, Watched

if TYPE_CHECKING:
    from tuyi.model.load import Model

__all__ = ["Routes"]


class Routes:
    """Answers requests for one model.

    Args:
        served: The model.
        settings: Limits.
        engine: Who runs it.
        metrics: What was counted.
    """

    def __init__(self, served: Served, settings: ServeSettings, engine: Engine, metrics: Metrics) -> None:
        self._served, self._settings, self._engine, self._metrics = served, settings, engine, metrics
        task, model = next(iter(served.models.items()))
        tokenizer = model.frontend.tokenizer
        self._vocabulary = Vocabulary(tokenizer)
        self._end: int = tokenizer.convert_tokens_to_ids("<|im_end|>")
        tasks = chat_tasks(served.tasks, _context(served, model))
        self._chats = Chats(Encoder(tokenizer, model.spec, tasks), task, self._end, settings)

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to an application."""
        app.get("/healthz")(self.healthz)
        app.get("/metrics")(self.metrics)
        app.get("/v1/models")(self.models)
        app.get("/v1/models/{name:path}")(self.model)
        app.post("/v1/classify")(self.classify)
        app.post("/v1/chat/completions")(self.chat)

    async def healthz(self) -> Response:
        """Whether requests are answered."""
        is_ready = self._engine.is_ready
        return _json({"status": "ok" if is_ready else "not ready"}, 200 if is_ready else 503)

    async def metrics(self) -> Response:
        """For Prometheus."""
        return Response(self._metrics.text(), media_type=self._metrics.content_type)

    async def models(self) -> Response:
        """The one model."""
        return _json({"object": "list", "data": [self._about()]})

    async def model(self, name: str) -> Response:
        """The same by its name."""
        self._check(name)
        return _json(self._about())

    async def classify(self, request: Request) -> Response:
        """The label of a dialogue with pictures."""
        body = await _body(request)
        asked: list[str] = []

        def read() -> Row:
            found = parsed(ClassifyRequest, body)
            asked.append(found.id or f"classify-{uuid4().hex}")
            example = Example(asked[0], found.content(self._pictures()), task=found.task)
            return row_of(example, self._served.encoder, self._settings.max_characters)

        watched = Watched(self._engine, read, request, self._settings.deadline_s)
        try:
            event = await watched.event()
        finally:
            watched.close()
        assert not isinstance(event, Piece), "nothing of a classification is told before its end"
        answer = answered(watched.job.asked, event, self._served.info)
        return _json({"id": asked[0], "model": self._served.name, **answer, "timing": _timing(watched, event)})

    async def chat(self, request: Request) -> Response:
        """An answer to a conversation."""
        body = await _body(request)
        asked: list[ChatRequest] = []

        def read() -> Row:
            found = parsed(ChatRequest, body)
            if found.model is not None:
                self._check(found.model)
            if len(set(map(id, self._served.models.values()))) > 1:
                message = "this server has a model for each task, which answer /v1/classify; serve one of them to chat"
                raise RefusalError(400, message, code="no_chat")
            asked.append(found)
            return self._chats.row(found, found.example(self._pictures()))

        watched = Watched(self._engine, read, request, self._settings.deadline_s)
        is_streamed = False
        try:
            event = await watched.event()
            completion = Completion(asked[0], watched.job.asked, self._served.name, self._vocabulary, self._end)
            if asked[0].stream:
                is_streamed = True
                return Stream(watched, event, completion)
            assert not isinstance(event, Piece), "pieces are told where they are asked for"
            return _json(completion.whole(event))
        finally:
            if not is_streamed:
                watched.close()

    def _pictures(self) -> Callable[[str, str], Image]:
        """Makes the pictures of one request, as many as it may have."""
        settings, number = self._settings, count(1)

        def picture(url: str, name: str) -> Image:
            if next(number) > settings.max_pictures:
                message = f"{name}: expected at most {settings.max_pictures} pictures, found more"
                raise RefusalError(400, message, param=name, code="too_many_images")
            if not settings.allow_hosts or url[:5].lower() == "data:":
                return from_data_url(url, name, settings.max_picture_pixels)
            data = fetch(url, name, settings.allow_hosts, most_bytes=settings.max_body_bytes, seconds=settings.read_s)
            return checked(data, name, settings.max_picture_pixels)

        return picture

    def _about(self) -> dict[str, Any]:
        return {"id": self._served.name, "object": "model", "created": self._served.created, "owned_by": "tuyi"}

    def _check(self, name: str) -> None:
        if name != self._served.name:
            message = f"model: expected {self._served.name!r}, found {name[:100]!r}"
            raise RefusalError(404, message, param="model", code="model_not_found")


async def _body(request: Request) -> bytes:
    try:
        return await request.body()
    except ClientDisconnect as error:
        raise ClientGoneError from error


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


def _json(value: Any, status: int = 200) -> Response:
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    return Response(body, status, media_type="application/json")
