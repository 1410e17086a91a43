"""`tuyi serve`: a model behind HTTP, until it is told to stop."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tuyi.errors import ConfigError, EngineError, first_line
from tuyi.serve.settings import ServeRun, ServeSettings
from tuyi.task.catalog import TaskSet

__all__ = ["ServeRun", "ServeSettings", "serve"]


def serve(
    model: str | Path,
    *,
    task: str | TaskSet | None = None,
    settings: ServeSettings | None = None,
    budget: Mapping[str, Any] | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Answer requests over HTTP; returns once a SIGTERM or Ctrl-C came and what ran is finished.

    Args:
        model: A model folder, hub id or built-in name.
        task: Needed where the model has no task of its own.
        settings: Where, for whom, how much.
        budget: Budget settings to use instead of the model's, such as ``max_pixels``.
        tell: Called with lines that say what was chosen, and where the server listens.

    Raises:
        ModelError: The model cannot be loaded.
        TaskError: The model has another task, or none and none is given.
        ConfigError: The address or the file of tokens cannot be used, or a package is missing.
        EngineError: The engine ended by an error.
    """
    try:
        import uvicorn

        from tuyi.serve.app import create_app
    except ImportError as error:
        raise ConfigError(f"tuyi serve needs {error.name}: pip install 'tuyi[serve]'") from error
    from tuyi.serve.guard import read_tokens
    from tuyi.serve.opening import open_model

    settings = settings or ServeSettings()
    read_tokens(settings.token_file)  # a model may take minutes to load: what is wrong is said before
    broken: list[BaseException] = []
    with _bound(settings) as bound:
        served = open_model(str(model), settings, task=task, budget=budget, tell=tell)

        def failed(error: BaseException) -> None:
            broken.append(error)
            server.should_exit = True

        app = create_app(served, settings, failed=failed)
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, timeout_graceful_shutdown=int(settings.drain_s) or 1,
            server_header=False,
        )  # fmt: skip
        server = uvicorn.Server(config)
        host, port = bound.getsockname()[:2]
        tell(f"{served.name}: listening on http://{host}:{port}")
        with _no_signal_ends_us():
            server.run(sockets=[bound])
    if broken:
        raise EngineError(f"the engine ended by an error: {first_line(broken[0])}") from broken[0]


def _bound(settings: ServeSettings) -> socket.socket:
    """The address, taken before the model is loaded."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    bound = socket.socket(family)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((settings.host, settings.port))
    except OSError as error:
        bound.close()
        raise ConfigError(
            f"serve.host, serve.port: cannot listen on {settings.host}:{settings.port} ({error.strerror}); "
            "is another server there? Choose another --port"
        ) from error
    return bound


@contextlib.contextmanager
def _no_signal_ends_us() -> Iterator[None]:
    """uvicorn finishes what runs on a signal, and then raises it again, which would be our end with a bad status."""
    known = (signal.SIGTERM, signal.SIGINT)
    before = {one: signal.signal(one, lambda *_: None) for one in known}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
