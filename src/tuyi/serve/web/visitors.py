"""Browser tabs that wait for an answer: when one is gone, what it waits for is given up."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tuyi.serve.held import Held
from tuyi.serve.waiting import Gone

if TYPE_CHECKING:
    import gradio
    from starlette.types import Scope

__all__ = ["KEY", "Visitors", "gone", "owner_of", "visitors_of"]

KEY = "tuyi.visitors"
"""Where the gate puts them in an ASGI scope."""

_COME_S, _BACK_S = 30.0, 2.0
"""Seconds within which a tab first opens the stream on which its answers come, and opens it again."""
_LOOK_S = 0.25
"""How often a stream looks whether the server is to end."""


class Visitors:
    """The tabs of one page, known by the names that Gradio gives them.

    Args:
        most_bytes: Most bytes of what they ask at a time.
        is_stopping: Whether the server is to end.
    """

    def __init__(self, most_bytes: int, is_stopping: Callable[[], bool] = lambda: False) -> None:
        self._is_stopping = is_stopping
        self._held, self._asking = Held(most_bytes), 0
        self._streams: Counter[str] = Counter()
        self._changed = asyncio.Condition()

    @contextmanager
    def asking(self, body: bytes) -> Iterator[None]:
        """Hold what a tab asks as long as it is answered.

        Raises:
            RefusalError: Too much is asked at once.
        """
        self._held.take(len(body))
        self._asking += 1
        try:
            yield
        finally:
            self._held.give_back(len(body))
            self._asking -= 1

    async def ended(self) -> None:
        """Returns once the server is to end and everybody has an answer."""
        idle = 0
        while idle < 2:  # the last answers are on their way still
            await asyncio.sleep(_LOOK_S)
            idle = idle + 1 if self._is_stopping() and not self._asking else 0

    async def came(self, name: str) -> None:
        """A tab listens."""
        async with self._changed:
            self._streams[name] += 1
            self._changed.notify_all()

    async def left(self, name: str) -> None:
        """A tab listens no more."""
        async with self._changed:
            self._streams[name] -= 1
            if not self._streams[name]:
                del self._streams[name]
            self._changed.notify_all()

    async def gone(self, name: str) -> None:
        """Returns once a tab has left, or has never come."""
        seconds = _COME_S
        async with self._changed:
            while await self._comes(name, seconds):
                await self._changed.wait_for(lambda: name not in self._streams)
                seconds = _BACK_S  # between two questions it closes its stream

    async def _comes(self, name: str, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self._changed.wait_for(lambda: name in self._streams)
        except TimeoutError:
            return False


def gone(request: gradio.Request) -> Gone:
    """What a :class:`~tuyi.serve.service.Service` is to watch, for the tab that sent a request."""
    visitors, name = visitors_of(request), request.session_hash or ""

    async def until() -> None:
        await visitors.gone(name)

    return until


def visitors_of(request: gradio.Request) -> Visitors:
    """The visitors of the page that a request came from."""
    found: Visitors = _scope(request)[KEY]
    return found


def owner_of(request: gradio.Request) -> bytes:
    """Whose request it is: the digest of the token with which its sender has signed in."""
    found: bytes = _scope(request)["tuyi.owner"]
    return found


def _scope(request: gradio.Request) -> Scope:
    assert request.request is not None, "Gradio has it of every event"
    return request.request.scope
