"""A row as a chat request: messages, pictures as PNG at the size at which the model sees them."""

from __future__ import annotations

import base64
import io
import re
from typing import Any

from tuyi.data.example import Image, Text
from tuyi.encode.encoded import Asked
from tuyi.predict.asked import unpatchify
from tuyi.vision.spec import ImagePatches, VisionSpec

__all__ = ["chat_messages"]


def chat_messages(asked: Asked, spec: VisionSpec, marks: re.Pattern[str]) -> tuple[list[dict[str, Any]], int]:
    """The conversation as OpenAI's chat interface spells it.

    A server obeys the chat template's marks wherever they stand, a local model only where the template has them. So a
    mark that somebody typed gets a zero-width space behind its first character.

    Args:
        asked: The row.
        spec: The model's vision facts.
        marks: Matches the tokenizer's special tokens in a text.

    Returns:
        The messages, and how many marks were broken in them.
    """
    messages: list[dict[str, Any]] = []
    pictures = iter(asked.pictures)
    broken = 0
    for turn in asked.turns:
        parts: list[dict[str, Any]] = []
        for part in turn.parts:
            if isinstance(part, Text):
                text, count = marks.subn(lambda mark: f"{mark[0][0]}\u200b{mark[0][1:]}", part.text)
                parts.append({"type": "text", "text": text})
                broken += count
            elif isinstance(part, Image):
                parts.append({"type": "image_url", "image_url": {"url": _data_url(next(pictures), spec)}})
        plain = turn.role != "user" and len(parts) == 1 and parts[0]["type"] == "text"
        messages.append({"role": turn.role, "content": parts[0]["text"] if plain else parts})
    return messages, broken


def _data_url(picture: ImagePatches, spec: VisionSpec) -> str:
    from PIL import Image as Pillow

    file = io.BytesIO()
    Pillow.fromarray(unpatchify(picture, spec)).save(file, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
