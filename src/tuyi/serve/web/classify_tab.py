"""The tab *Classify*: a dialogue with its pictures, and what the model says of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from tuyi.serve.service import Service
from tuyi.serve.waiting import Gone
from tuyi.serve.web.events import ask

__all__ = ["add_classify"]


def add_classify(service: Service) -> None:
    """Add the tab's content to the block that is being made."""

    async def classify(body: bytes, gone: Gone, owner: bytes) -> AsyncIterator[dict[str, Any]]:
        yield {"answer": await service.classify(body, gone, owner)}

    ask("classify", '<div class="tuyi-classify"></div>', classify)
