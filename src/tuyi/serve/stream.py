"""An answer that is sent while it is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import Response

from tuyi.serve.completion import Completion, sent
from tuyi.serve.jobs import Answered, Labelled, Piece
from tuyi.serve.refusals import RefusalError
from tuyi.serve.waiting import ClientGoneError, Watched

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

__all__ = ["Stream"]


class Stream(Response):
    """Server-sent events.

    Args:
        watched: The request.
        first: Its first event.
        completion: How events are spelled.
    """

    media_type = "text/event-stream"

    def __init__(self, watched: Watched, first: Labelled | Piece | Answered, completion: Completion) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._watched, self._first, self._completion = watched, first, completion

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def tell(data: bytes) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": True})

        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            await tell(self._completion.opening())
            event = self._first
            while True:
                for chunk in self._completion.chunks(event):
                    await tell(chunk)
                if not isinstance(event, Piece):
                    break
                event = await self._watched.event()
        except ClientGoneError:
            pass
        except RefusalError as refusal:  # the answer has begun: its status cannot be changed any more
            await tell(sent(refusal.body()))
        finally:
            self._watched.close()
        await send({"type": "http.response.body", "body": b""})
