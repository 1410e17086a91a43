"""Many rows under way at once: an asyncio loop driven by the iterator that hands out its results."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Iterable
from itertools import islice
from typing import Any

from tuyi.data.example import Example
from tuyi.errors import AnswerError, DataError, TuyiError
from tuyi.predict.engine import SizedRow
from tuyi.predict.prediction import Prediction

__all__ = ["answers_as_they_come", "cancelled"]


def answers_as_they_come(
    loop: asyncio.AbstractEventLoop,
    rows: Iterable[SizedRow],
    answer: Callable[[Example], Awaitable[Prediction]],
    most: int,
    skip: Callable[[TuyiError], None] | None = None,
) -> Generator[list[Prediction], None, None]:
    """Predictions as they become ready; rows are read as room for them comes up.

    Args:
        loop: Runs while the iterator waits, and only then.
        rows: The rows, read lazily.
        answer: Answers one row.
        most: Rows that are under way together.
        skip: Called with what is wrong with a single row; such a row stops everything where not given.

    Raises:
        TuyiError: The first failure of ``answer``, after the answers that were ready with it; the rest is cancelled.
    """
    rows = iter(rows)
    under_way: set[asyncio.Task[Prediction]] = set()
    try:
        while True:
            for row, _ in islice(rows, most - len(under_way)):
                under_way.add(loop.create_task(_as_coroutine(answer(row))))
            if not under_way:
                return
            done, under_way = loop.run_until_complete(asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED))
            if ready := [task.result() for task in done if task.exception() is None]:
                yield ready
            for task in done:
                error = task.exception()
                if skip is not None and isinstance(error, DataError | AnswerError):
                    skip(error)
                else:
                    task.result()
    finally:
        if not loop.is_closed():  # an engine that was closed first has stopped them already
            loop.run_until_complete(cancelled(under_way))


async def _as_coroutine(awaited: Awaitable[Prediction]) -> Prediction:
    return await awaited


async def cancelled(tasks: Iterable[asyncio.Task[Any]] | None = None) -> None:
    """Stop tasks and wait until they have stopped; by default every other task of the running loop."""
    stopping = asyncio.all_tasks() - {asyncio.current_task()} if tasks is None else list(tasks)
    for task in stopping:
        task.cancel()
    await asyncio.gather(*stopping, return_exceptions=True)
