"""The HTTP application; making one starts nothing, its lifespan does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from tuyi.serve.engine import Engine
from tuyi.serve.guard import Guard, owner_of, read_tokens
from tuyi.serve.line import Line
from tuyi.serve.metrics import Metrics
from tuyi.serve.opening import Served
from tuyi.serve.refusals import RefusalError
from tuyi.serve.routes import Routes
from tuyi.serve.scorer import Scorer
from tuyi.serve.service import Service
from tuyi.serve.settings import ServeSettings
from tuyi.serve.writer import Writer

if TYPE_CHECKING:
    from tuyi.serve.web.page import Page, PageExtras

__all__ = ["create_app"]


def create_app(
    served: Served, settings: ServeSettings, *, failed: Callable[[BaseException], None] = lambda error: None,
    extras: PageExtras | None = None, is_stopping: Callable[[], bool] = lambda: False,
) -> FastAPI:  # fmt: skip
    """The application for a model.

    Args:
        served: The model.
        settings: Limits.
        failed: Called, from another thread, should the engine end by an error.
        extras: What the page shows beside the model; no page where None.
        is_stopping: Whether the server is to end, so that an open page does not keep it.

    Raises:
        ConfigError: The file of tokens cannot be used.
    """
    metrics = Metrics()
    engine = _engine(served, settings, metrics, failed)
    service = Service(served, settings, engine)
    tokens = read_tokens(settings.token_file)
    page = None if extras is None else _page(service, extras, tokens, is_stopping)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine.start(asyncio.get_running_loop())
        async with page.lifespan() if page is not None else nullcontext():
            yield
        await asyncio.to_thread(engine.close)
        service.close()

    app = FastAPI(
        title="tuyi", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False
    )
    app.add_exception_handler(RefusalError, _refuse)
    app.add_exception_handler(HTTPException, _no_route)
    app.add_exception_handler(Exception, _broken)
    if page is not None:
        page.add_to(app)
    is_open = page.has if page is not None else lambda path: False
    app.add_middleware(Guard, settings=settings, tokens=tokens, metrics=metrics, is_open=is_open)
    Routes(service, metrics).add_to(app)
    return app


def _page(
    service: Service, extras: PageExtras, tokens: Sequence[bytes], is_stopping: Callable[[], bool]
) -> Page:  # fmt: skip
    from tuyi.serve.web.page import Page  # with Gradio, which takes seconds to import

    accepts = (lambda token: owner_of(token, tokens)) if tokens else None
    return Page(service, extras, accepts, is_stopping)


def _engine(
    served: Served, settings: ServeSettings, metrics: Metrics, failed: Callable[[BaseException], None]
) -> Engine:
    models = list(dict.fromkeys(served.models.values()))
    line = Line(served.pack_tokens, settings.max_wait_ms / 1000, settings.max_queue, 3 * served.pack_tokens)
    metrics.watch_queue(lambda: len(line))
    return Engine(
        [
            (
                Scorer(one, served.features),
                Writer(one, served.encoder, served.cache_tokens, served.pack_tokens, settings.keep_tokens),
            )
            for one in models
        ],
        {name: models.index(one) for name, one in served.models.items()},
        line,
        workers=settings.workers,
        metrics=metrics,
        failed=failed,
    )


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusalError)
    return _said(error, error.headers())


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = "not_found" if error.status_code == 404 else None
    told = f"{request.method} {request.url.path[:200]}: {error.detail}"
    return _said(RefusalError(error.status_code, told, code=code), dict(error.headers or {}))


async def _broken(request: Request, error: Exception) -> Response:
    return _said(RefusalError(500, "the server made a mistake; its log says more", code="internal_error"), {})


def _said(refusal: RefusalError, headers: dict[str, str]) -> Response:
    body: Any = json.dumps(refusal.body(), ensure_ascii=False).encode()
    return Response(body, refusal.status, headers, "application/json")
