"""ShareGPT and alpaca rows as LLaMA-Factory defines them, with its ``dataset_info.json``.

ShareGPT: ``conversations`` of ``from`` / ``value`` (or ``messages`` of ``role`` / ``content``), ``images`` and
``videos``. Alpaca: ``instruction``, ``input``, ``output``, ``system``, ``history``. ``<image>`` and ``<video>`` stand
in any message before the last answer.

Source: LLaMA-Factory 0.9.5, ``llamafactory/data/converter.py`` and ``data/README.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tuyi.data.example import Example
from tuyi.data.formats.chat import ChatRole, Message, message_row, read_chat, write_chat
from tuyi.data.formats.dataset_info import Entry, find_entry
from tuyi.data.formats.fields import Fields
from tuyi.data.formats.media import MediaFolders, spell
from tuyi.data.options import ReadOptions, Tags

__all__ = ["COLUMNS", "info_entry", "reader", "render"]

COLUMNS = frozenset(
    {"id", "conversations", "messages", "system", "tools", "images", "videos", "audios"}
    | {"task", "rationale", "weight", "soft"}
)
_USUAL_ROLES: dict[str, ChatRole] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "observation": "observation",
    "tool": "observation",
    "function": "function",
    "function_call": "function",
}
"""Roles as files spell them where no tags are given."""
_WRITTEN = Tags()
_TAGS: dict[ChatRole, str] = {
    "user": _WRITTEN.user_tag,
    "assistant": _WRITTEN.assistant_tag,
    "system": _WRITTEN.system_tag,
    "observation": _WRITTEN.observation_tag,
    "function": _WRITTEN.function_tag,
}


def reader(file: Path, options: ReadOptions) -> Callable[[Fields], Example]:
    """A function that reads one row."""
    entry = find_entry(file, options.dataset)
    tags = options.tags or (entry.tags if entry is not None else None)
    columns = dict(entry.columns) if entry is not None else {}
    folders = MediaFolders(file.parent, options.media_root)

    def read_row(fields: Fields) -> Example:
        if fields.references(columns.get("audios", "audios")):
            raise fields.bad("media", "the row has sound (audios), expected pictures, video and text")
        messages = _messages(fields, entry, columns, tags)
        images = folders.images(fields, options.images or columns.get("images", "images"))
        videos = folders.videos(fields, options.videos or columns.get("videos", "videos"))
        return read_chat(fields, messages, images, videos)

    return read_row


def _messages(fields: Fields, entry: Entry | None, columns: dict[str, str], tags: Tags | None) -> list[Message]:
    is_chat = entry.formatting != "alpaca" if entry is not None else "instruction" not in fields.row
    if is_chat:
        usual = "messages" if "messages" in fields.row and "conversations" not in fields.row else "conversations"
        messages = _conversation(fields, columns.get("messages", usual), tags)
    else:
        messages = _alpaca(fields, columns)
    system = fields.optional_text(columns.get("system", "system"))
    if system and not (messages and messages[0].role == "system"):
        messages.insert(0, Message("system", system))
    return messages


def _conversation(fields: Fields, column: str, tags: Tags | None) -> list[Message]:
    items = fields.objects(column)
    if tags is None:
        role_key, content_key = ("role", "content") if items and "role" in items[0] else ("from", "value")
        roles = _USUAL_ROLES
    else:
        role_key, content_key = tags.role_tag, tags.content_tag
        roles = {
            tags.user_tag: "user",
            tags.assistant_tag: "assistant",
            tags.observation_tag: "observation",
            tags.function_tag: "function",
            tags.system_tag: "system",
        }
    messages = []
    for number, item in enumerate(items, 1):
        role, content = item.get(role_key), item.get(content_key)
        if role not in roles:
            known = ", ".join(roles)
            raise fields.bad("type", f"message {number}: expected {role_key!r} as one of {known}, found {role!r}")
        if not isinstance(content, str):
            raise fields.wrong_type(f"{column}[{number}].{content_key}", "text", content)
        more = {key: value for key, value in item.items() if key not in (role_key, content_key)}
        messages.append(Message(roles[role], content, more))
    return messages


def _alpaca(fields: Fields, columns: dict[str, str]) -> list[Message]:
    messages = []
    history = fields.take(columns.get("history", "history")) or []
    for pair in history if isinstance(history, list) else [history]:
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise fields.wrong_type("history", "pairs of [instruction, response]", pair)
        messages += [Message("user", pair[0]), Message("assistant", pair[1])]
    instruction = fields.text(columns.get("prompt", "instruction"))
    query = fields.optional_text(columns.get("query", "input"))
    messages.append(Message("user", "\n".join(text for text in (instruction, query) if text)))
    if (label := fields.label(columns.get("response", "output"))) is not None:
        messages.append(Message("assistant", label))
    return messages


def render(example: Example, names: tuple[list[str], list[str]]) -> dict[str, Any]:
    """The row of an example; arguments and errors as for the competition format."""
    spoken, extra = write_chat(example)
    images, videos = names
    conversation = []
    for said in spoken:
        text = example.label if said.is_answer else spell(said.parts)
        conversation.append(message_row(said, (_WRITTEN.role_tag, _TAGS[said.role]), (_WRITTEN.content_tag, text)))
    row: dict[str, Any] = {"id": example.id, "conversations": conversation, "images": images}
    if videos:
        row["videos"] = videos
    return row | extra


def info_entry(file_name: str, has_videos: bool) -> dict[str, Any]:
    """What ``dataset_info.json`` says about a file that :func:`render` filled."""
    columns = {"messages": "conversations", "images": "images"}
    if has_videos:
        columns["videos"] = "videos"
    return {"file_name": file_name, "formatting": "sharegpt", "columns": columns}
