"""Chat rows in OpenAI / ms-swift style, one JSON object a line.

``messages`` of ``role`` / ``content``. Content is text with ``<image>`` and ``<video>`` marks for the columns
``images`` and ``videos``, or a list of parts: ``{"type": "text", "text": …}``, ``{"type": "image", "image": …}``,
``{"type": "image_url", "image_url": {"url": …}}``, ``{"type": "video", "video": …}``. ``data:`` URLs are read as the
file that they hold.

Source: OpenAI chat completions reference; ms-swift "Custom dataset".
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tuyi.data.example import Example, Image, Part, Text, Video
from tuyi.data.formats.chat import ChatRole, Message, message_row, read_chat, write_chat
from tuyi.data.formats.fields import Fields
from tuyi.data.formats.media import IMAGE_MARK, VIDEO_MARK, MediaFolders, joined, spell
from tuyi.data.options import ReadOptions

__all__ = ["COLUMNS", "reader", "render"]

COLUMNS = frozenset({"id", "messages", "images", "videos", "audios", "task", "rationale", "weight", "soft"})
_ROLES: dict[str, ChatRole] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "observation",
    "tool_response": "observation",
    "tool_call": "function",
}
_WRITTEN: dict[ChatRole, str] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "observation": "tool_response",
    "function": "tool_call",
}
_IMAGE_KEYS = ("image", "image_url", "input_image")
_VIDEO_KEYS = ("video", "video_url")


def reader(file: Path, options: ReadOptions) -> Callable[[Fields], Example]:
    """A function that reads one row."""
    folders = MediaFolders(file.parent, options.media_root)

    def read_row(fields: Fields) -> Example:
        if fields.references("audios"):
            raise fields.bad("media", "the row has sound (audios), expected pictures, video and text")
        messages = [
            _message(fields, folders, number, item) for number, item in enumerate(fields.objects("messages"), 1)
        ]
        images = folders.images(fields, options.images or "images")
        videos = folders.videos(fields, options.videos or "videos")
        return read_chat(fields, messages, images, videos)

    return read_row


def _message(fields: Fields, folders: MediaFolders, number: int, item: dict[str, Any]) -> Message:
    role, content = item.get("role"), item.get("content")
    if role not in _ROLES:
        raise fields.bad("type", f"message {number}: expected a role of {', '.join(_ROLES)}, found {role!r}")
    if item.get("tool_calls"):
        raise fields.bad("type", f"message {number}: tool_calls cannot be read; write the call as the content")
    more = {key: value for key, value in item.items() if key not in ("role", "content")}
    if isinstance(content, list):
        parts = [
            _part(fields, folders, f"messages[{number}].content[{at}]", part) for at, part in enumerate(content, 1)
        ]
        return Message(_ROLES[role], joined(parts), more)
    if not isinstance(content, str):
        raise fields.wrong_type(f"messages[{number}].content", "text or a list of parts", content)
    return Message(_ROLES[role], content, more)


def _part(fields: Fields, folders: MediaFolders, where: str, part: Any) -> Part:
    if isinstance(part, str):
        return Text(part)
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("text", "input_text") and isinstance(part.get("text"), str):
        return Text(part["text"])
    for keys, media in ((_IMAGE_KEYS, Image), (_VIDEO_KEYS, Video)):
        if kind in keys:
            value = next((part[key] for key in (kind, *keys) if key in part), None)
            return media(*folders.find(fields, where, value))
    raise fields.wrong_type(where, "a part of type text, image, image_url or video", part)


def render(example: Example, names: tuple[list[str], list[str]]) -> dict[str, Any]:
    """The row of an example.

    A text that contains a mark of its own is written as a list of parts, so that it is read back as text.

    Args:
        example: What to write.
        names: Names of its pictures and of its videos, in order.
    """
    spoken, extra = write_chat(example)
    images, videos = list(names[0]), list(names[1])
    messages = []
    kept: tuple[list[str], list[str]] = ([], [])
    for said in spoken:
        content = example.label if said.is_answer else _content(said.parts, images, videos, kept)
        messages.append(message_row(said, ("role", _WRITTEN[said.role]), ("content", content)))
    row: dict[str, Any] = {"id": example.id, "messages": messages}
    if kept[0]:
        row["images"] = kept[0]
    if kept[1]:
        row["videos"] = kept[1]
    return row | extra


def _content(
    parts: tuple[Part, ...], images: list[str], videos: list[str], kept: tuple[list[str], list[str]]
) -> str | list[dict[str, str]]:
    """One message's content; takes its media names off the front of ``images`` and ``videos``."""
    text = "".join(part.text for part in parts if isinstance(part, Text))
    marked = IMAGE_MARK in text or VIDEO_MARK in text
    if not marked:
        kept[0].extend(images.pop(0) for part in parts if isinstance(part, Image))
        kept[1].extend(videos.pop(0) for part in parts if isinstance(part, Video))
        return spell(parts)
    content = []
    for part in parts:
        if isinstance(part, Text):
            content.append({"type": "text", "text": part.text})
        elif isinstance(part, Image):
            content.append({"type": "image", "image": images.pop(0)})
        else:
            content.append({"type": "video", "video": videos.pop(0)})
    return content
