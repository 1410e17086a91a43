"""What the served model says of rows that a person is about to see, asked ahead while somebody is at work."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from tuyi.data.example import Example, Image, Text
from tuyi.serve.refusals import RefusalError
from tuyi.serve.web.labelling import Labelling
from tuyi.serve.web.row_states import Suggestion

if TYPE_CHECKING:
    from tuyi.serve.service import Service

__all__ = ["Suggester"]

_AT_ONCE = 4
_AWAKE_S = 60.0
"""Seconds after somebody last looked during which rows are read ahead."""
_AGAIN_S = 1.0
_MOST_TRIES = 5
_LATER = (429, 503, 504)


class Suggester:
    """Reads rows ahead, a few at a time, so that other requests hardly notice; rests where nobody labels.

    Args:
        labelling: The rows.
        service: Who reads them.
    """

    def __init__(self, labelling: Labelling, service: Service) -> None:
        self._labelling, self._service = labelling, service
        self._until = 0.0
        self._work: asyncio.Task[None] | None = None
        self._tries: Counter[str] = Counter()

    def wake(self) -> None:
        """Somebody is at work; called on the server's event loop."""
        self._until = time.monotonic() + _AWAKE_S
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._read_ahead())

    async def _read_ahead(self) -> None:
        while time.monotonic() < self._until:
            rows = await asyncio.to_thread(self._labelling.wanted, _AT_ONCE)
            if not rows or not all(await asyncio.gather(*(self._ask(row) for row in rows))):
                await asyncio.sleep(_AGAIN_S)

    async def _ask(self, row: Example) -> bool:
        """Whether the row was answered or never will be; else it is worth another try later."""
        try:
            body = await asyncio.to_thread(_body, row, self._labelling.task_of(row).name)
            answer = await self._service.classify(body, _never, b"label", row.history)
        except RefusalError as error:
            self._tries[row.id] += 1
            if error.status in _LATER and self._tries[row.id] < _MOST_TRIES:
                return False
            self._labelling.suggest(row.id, Suggestion(problem=error.message))
        else:
            found = Suggestion(answer["probabilities"] or {answer["label"]: 1.0}, answer["rationale"])
            self._labelling.suggest(row.id, found)
        return True


async def _never() -> None:
    """Whoever labels goes on looking."""
    await asyncio.Event().wait()


def _body(row: Example, task: str) -> bytes:
    """A row as a request.

    Raises:
        RefusalError: A request cannot hold it.
    """
    parts: list[dict[str, str]] = []
    for number, part in enumerate(row.content, 1):
        if isinstance(part, Text):
            parts.append({"text": part.text})
        elif isinstance(part, Image):
            parts.append({"image": _data_url("image", part.source, number)})
        else:
            parts.append({"video": _data_url("video", part.source, number)})
    return json.dumps({"task": task, "parts": parts}).encode()


def _data_url(kind: str, source: Path | bytes, number: int) -> str:
    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
    except OSError as error:
        raise RefusalError(400, f"part {number} cannot be read: {error.strerror}", code="unusable_content") from error
    return f"data:{kind}/x;base64," + base64.b64encode(data).decode("ascii")
