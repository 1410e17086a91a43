"""The tab *Chat*: a talk over pictures and video, answered while it is written."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from tuyi.serve.jobs import Answered, Piece
from tuyi.serve.service import Service
from tuyi.serve.waiting import Gone
from tuyi.serve.web.events import ask

__all__ = ["add_chat"]


def add_chat(service: Service) -> None:
    """Add the tab's content to the block that is being made."""

    async def talk(body: bytes, gone: Gone, owner: bytes) -> AsyncIterator[dict[str, Any]]:
        talking = await service.chat(body, gone, owner)
        text = ""
        try:
            async for event in talking.events():
                if isinstance(event, Piece):
                    text += event.text
                    yield {"text": text, "over": False}
                elif isinstance(event, Answered):
                    yield {"text": event.text, "over": True, "cut": event.is_cut}
        finally:
            talking.close()

    ask("chat", '<div class="tuyi-chat"></div>', talk)
