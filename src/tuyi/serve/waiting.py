"""Waiting for what becomes of a request: its events, its deadline, or its client's going away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from tuyi.serve.engine import Engine
from tuyi.serve.jobs import Answered, Event, Failed, Job, Labelled, Piece, Read, Row
from tuyi.serve.refusals import RefusalError

__all__ = ["ClientGoneError", "Gone", "Watched"]

Gone: TypeAlias = Callable[[], Awaitable[None]]
"""Returns once a client is gone."""


class ClientGoneError(RefusalError):
    """The client has closed its connection; nobody reads the answer."""

    def __init__(self) -> None:
        super().__init__(499, "the client has gone")


class Watched:
    """A request that has been handed to the engine, while its client and the clock are watched, until it is closed.

    Args:
        engine: Who answers it.
        read: Makes its row, as :class:`~tuyi.serve.jobs.Job` says.
        gone: Returns once the client is.
        seconds: Until its deadline.

    Raises:
        RefusalError: The queue is full.
    """

    def __init__(self, engine: Engine, read: Read, gone: Gone, seconds: float) -> None:
        self._mail: asyncio.Queue[Event] = asyncio.Queue()
        self._gone = gone
        self.job = Job(read, self._mail)
        engine.submit(self.job)
        late = RefusalError(504, f"not answered within {seconds:g} s; try again later", code="deadline")
        self._clock = asyncio.get_running_loop().call_later(seconds, self._give_up, late)
        self._watch = asyncio.create_task(self._until_gone())

    async def event(self) -> Labelled | Piece | Answered:
        """The next event.

        Raises:
            RefusalError: What became of the request.
        """
        event = await self._mail.get()
        if isinstance(event, Failed):
            raise event.error
        return event

    def close(self) -> None:
        """Nobody waits any more."""
        self._leave()
        self._clock.cancel()
        self._watch.cancel()

    async def _until_gone(self) -> None:
        await self._gone()
        self._give_up(ClientGoneError())

    def _leave(self) -> None:
        self.job.is_gone = True
        self.job.read = _nothing  # which held the request's body, that nobody may have begun to read

    def _give_up(self, error: RefusalError) -> None:
        self._leave()
        self._mail.put_nowait(Failed(error))


def _nothing(job: Job) -> Row:
    raise ClientGoneError
