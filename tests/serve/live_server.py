"""A server on a port of its own, and what is sent to it."""

from __future__ import annotations

import base64
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn

from tuyi.data.example import Example, Image, Text

__all__ = ["Running", "asked", "data_url", "running"]


@dataclass(frozen=True)
class Running:
    """A server that runs: where it is, and its application."""

    url: str
    app: Any
    server: uvicorn.Server

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").partition(":")
        return host, int(port)

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, **options)


@contextlib.contextmanager
def running(app: Any, **options: Any) -> Iterator[Running]:
    """A server of an application, in a thread; ``options`` are uvicorn's."""
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=5, **options))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        until = time.monotonic() + 20
        while not server.started and time.monotonic() < until:
            time.sleep(0.01)
        yield Running(f"http://127.0.0.1:{bound.getsockname()[1]}", app, server)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def data_url(image: Image) -> str:
    assert isinstance(image.source, bytes)
    return "data:image/png;base64," + base64.b64encode(image.source).decode()


def asked(row: Example) -> dict[str, Any]:
    """A row as a request of ``/v1/classify``."""
    parts = [
        {"text": part.text} if isinstance(part, Text) else {"image": data_url(part)}
        for part in row.content
        if isinstance(part, Text | Image)
    ]
    return {"id": row.id, "task": row.task, "parts": parts}
