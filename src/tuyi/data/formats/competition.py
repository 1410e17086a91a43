"""The WWW2025 challenge's JSON list: ``id``, ``instruction``, ``input``, ``output``, ``image``.

``<image>`` in the instruction marks where each picture goes; the pictures lie in ``images/`` beside the file. A test
file has no ``output``, or an empty one. Further columns of tuyi: ``video``, ``history`` (a list of ``role`` and
``content``), ``task``, ``rationale``, ``weight``, ``soft``.

Source: Tianchi 532277, train.json and test1.json.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tuyi.data.example import Example
from tuyi.data.formats.chat import Message, read_chat
from tuyi.data.formats.fields import Fields
from tuyi.data.formats.media import MediaFolders, spell
from tuyi.data.options import ReadOptions

__all__ = ["COLUMNS", "MEDIA_FOLDER", "reader", "render"]

MEDIA_FOLDER = "images"
COLUMNS = frozenset(
    {"id", "instruction", "input", "output", "image", "video", "history", "task", "rationale", "weight", "soft"}
)
_HISTORY_ROLES = ("system", "user", "assistant")


def reader(file: Path, options: ReadOptions) -> Callable[[Fields], Example]:
    """A function that reads one row."""
    folders = MediaFolders(file.parent, options.media_root, MEDIA_FOLDER)

    def read_row(fields: Fields) -> Example:
        instruction, more = fields.text("instruction"), fields.optional_text("input")
        messages = _history(fields)
        messages.append(Message("user", "\n".join(text for text in (instruction, more) if text)))
        if (label := fields.label("output")) is not None:
            messages.append(Message("assistant", label))
        images = folders.images(fields, options.images or "image")
        videos = folders.videos(fields, options.videos or "video")
        return read_chat(fields, messages, images, videos)

    return read_row


def _history(fields: Fields) -> list[Message]:
    if fields.row.get("history") is None:
        fields.take("history")
        return []
    messages = []
    for item in fields.objects("history"):
        role, content = item.get("role"), item.get("content")
        if role not in _HISTORY_ROLES or not isinstance(content, str):
            expected = f"objects with role ({', '.join(_HISTORY_ROLES)}) and content (text)"
            raise fields.wrong_type("history", expected, item)
        messages.append(Message(role, content))
    return messages


def render(example: Example, names: tuple[list[str], list[str]]) -> dict[str, Any]:
    """The row of an example.

    Args:
        example: What to write.
        names: Names of its pictures and of its videos, in order.

    Raises:
        DataError: A text contains a media mark of its own.
    """
    images, videos = names
    row: dict[str, Any] = {
        "id": example.id,
        "instruction": spell(example.content),
        "input": "",
        "output": example.label or "",
        "image": images,
    }
    if videos:
        row["video"] = videos
    if example.history:
        row["history"] = [{"role": turn.role, "content": spell(turn.parts)} for turn in example.history]
    return row | dict(example.extra)
