"""The routes: from HTTP to the service, and back."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.requests import ClientDisconnect

from tuyi.serve.described import described
from tuyi.serve.jobs import Piece
from tuyi.serve.metrics import Metrics
from tuyi.serve.service import Service
from tuyi.serve.stream import Stream
from tuyi.serve.waiting import ClientGoneError, Gone

__all__ = ["Routes"]


class Routes:
    """Answers requests for one model.

    Args:
        service: Who answers them.
        metrics: What was counted.
    """

    def __init__(self, service: Service, metrics: Metrics) -> None:
        self._service, self._metrics = service, metrics
        self._described = described(service.served, service.settings)

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to an application."""
        app.get("/openapi.json")(self.openapi)
        app.get("/healthz")(self.healthz)
        app.get("/metrics")(self.metrics)
        app.get("/v1/models")(self.models)
        app.get("/v1/models/{name:path}")(self.model)
        app.post("/v1/classify")(self.classify)
        app.post("/v1/chat/completions")(self.chat)

    async def openapi(self) -> Response:
        """The routes in OpenAPI's words: bodies are read by threads, of which FastAPI knows nothing."""
        return _json(self._described)

    async def healthz(self) -> Response:
        """Whether requests are answered."""
        is_ready = self._service.is_ready
        return _json({"status": "ok" if is_ready else "not ready"}, 200 if is_ready else 503)

    async def metrics(self) -> Response:
        """For Prometheus."""
        return Response(self._metrics.text(), media_type=self._metrics.content_type)

    async def models(self) -> Response:
        """The one model."""
        return _json({"object": "list", "data": [self._about()]})

    async def model(self, name: str) -> Response:
        """The same by its name."""
        self._service.check(name)
        return _json(self._about())

    async def classify(self, request: Request) -> Response:
        """The label of a dialogue with pictures."""
        return _json(await self._service.classify(await _body(request), _gone(request), _owner(request)))

    async def chat(self, request: Request) -> Response:
        """An answer to a conversation."""
        talking = await self._service.chat(await _body(request), _gone(request), _owner(request))
        if talking.request.stream:
            return Stream(talking)
        talking.close()
        assert not isinstance(talking.first, Piece), "pieces are told where they are asked for"
        return _json(talking.completion.whole(talking.first))

    def _about(self) -> dict[str, Any]:
        served = self._service.served
        return {"id": served.name, "object": "model", "created": served.created, "owned_by": "tuyi"}


async def _body(request: Request) -> bytes:
    try:
        return await request.body()
    except ClientDisconnect as error:
        raise ClientGoneError from error


def _owner(request: Request) -> bytes:
    """Whose token came with it; nobody's where there are none."""
    owner: bytes = request.scope.get("tuyi.owner", b"")
    return owner


def _gone(request: Request) -> Gone:
    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    return gone


def _json(value: Any, status: int = 200) -> Response:
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    return Response(body, status, media_type="application/json")
