"""An answer that is sent while it is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import Response

from tuyi.serve.completion import sent
from tuyi.serve.refusals import RefusalError
from tuyi.serve.waiting import ClientGoneError

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from tuyi.serve.service import Talking

__all__ = ["Stream"]


class Stream(Response):
    """Server-sent events.

    Args:
        talking: The answer.
    """

    media_type = "text/event-stream"

    def __init__(self, talking: Talking) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._talking = talking

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def tell(data: bytes) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": True})

        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await tell(self._talking.completion.opening())
            async for event in self._talking.events():
                for chunk in self._talking.completion.chunks(event):
                    await tell(chunk)
        except ClientGoneError:
            pass
        except RefusalError as refusal:  # the answer has begun: its status cannot be changed any more
            await tell(sent(refusal.body()))
        finally:
            self._talking.close()
        await send({"type": "http.response.body", "body": b""})
