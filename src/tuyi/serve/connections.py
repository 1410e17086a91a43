"""Connections that end where nothing comes of them: uvicorn waits for ever, for a head as for an answer to be taken."""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["impatient"]


def impatient(seconds: float) -> type[asyncio.Protocol]:
    """uvicorn's protocol with an end to waiting.

    A connection ends where for so many seconds no request begins or comes to the end of its head, or its client takes
    nothing of what there is for it; at the latest after twice as many. While a request is answered it goes on.

    Args:
        seconds: How long to wait.
    """
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    base: Any = AutoHTTPProtocol

    class Impatient(base):  # type: ignore[misc]
        _seen: tuple[object, int] | None = None  # the request, and bytes that its client has not taken
        _clock: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._clock = self.loop.call_later(seconds, self._look)

        def connection_lost(self, error: Exception | None) -> None:
            if self._clock is not None:
                self._clock.cancel()
            super().connection_lost(error)

        def _look(self) -> None:
            if self.transport.get_protocol() is not self:
                return  # it has become a connection of another kind
            request, left = self.cycle, self.transport.get_write_buffer_size()
            is_waiting = left or self.transport.is_closing() or request is None or request.response_complete
            if is_waiting and self._seen == (request, left):
                self.transport.abort()
                return
            self._seen = (request, left) if is_waiting else None
            self._clock = self.loop.call_later(seconds, self._look)

    return Impatient
