"""Chat messages to examples and back: the last answer is the label, what stands before it is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from tuyi.data.example import Example, Image, Part, Role, Text, Turn, Video
from tuyi.data.formats.fields import Fields
from tuyi.data.formats.media import put_in_place
from tuyi.errors import DataError

__all__ = ["FIELDS", "ROLES", "ChatRole", "Message", "Spoken", "message_row", "read_chat", "write_chat"]

ChatRole: TypeAlias = Literal["system", "user", "assistant", "observation", "function"]
_SHOWN_AS: dict[ChatRole, Role] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "observation": "user",
    "function": "assistant",
}

ROLES = "message_roles"
"""Extra column that keeps the roles of a chat with tools, which turns do not tell apart."""
FIELDS = "message_fields"
"""Extra column that keeps further keys of messages, such as ``name`` or ``loss``; one object a message."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message as the file has it.

    Args:
        role: Who speaks.
        content: Text with media marks, or parts where the file gives them apart.
        more: Further keys of the message.
    """

    role: ChatRole
    content: str | tuple[Part, ...]
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Spoken:
    """One message to write.

    Args:
        role: Who speaks.
        parts: What is said.
        more: Further keys of the message.
        is_answer: Whether this is the label.
    """

    role: ChatRole
    parts: tuple[Part, ...]
    more: Mapping[str, Any]
    is_answer: bool


def read_chat(
    fields: Fields, messages: Sequence[Message], images: Sequence[Image] = (), videos: Sequence[Video] = ()
) -> Example:
    """An example from the messages of a chat.

    Raises:
        BadRow: No user message before the answer, or marks and media that do not agree.
    """
    shown, label = _split_answer(fields, messages)
    if not shown or _SHOWN_AS[shown[-1].role] != "user":
        order = ", ".join(message.role for message in messages) or "no messages"
        raise fields.bad("type", f"expected a user message, then at most one answer at the end; found {order}")
    texts = [message.content for message in shown if isinstance(message.content, str)]
    placed = iter(put_in_place(fields, texts, images, videos))
    parts = [next(placed) if isinstance(message.content, str) else message.content for message in shown]
    if not parts[-1]:
        raise fields.bad("empty", "the last user message is empty, expected text or media")
    task, rationale, weight, soft = fields.task, fields.rationale, fields.weight, fields.soft
    return Example(
        id=fields.id,
        content=parts[-1],
        task=task,
        label=label,
        rationale=rationale,
        weight=weight,
        soft=soft,
        history=tuple(Turn(_SHOWN_AS[said.role], part) for said, part in zip(shown[:-1], parts)),
        place=fields.place,
        extra=_with_roles(fields.extra(), messages if label is not None else shown),
    )


def _split_answer(fields: Fields, messages: Sequence[Message]) -> tuple[Sequence[Message], str | None]:
    if not messages or _SHOWN_AS[messages[-1].role] != "assistant":
        return messages, None
    answer = messages[-1].content
    if not isinstance(answer, str):
        if not all(isinstance(part, Text) for part in answer):
            raise fields.bad("type", "the answer contains media, expected text")
        answer = "".join(part.text for part in answer if isinstance(part, Text))
    return messages[:-1], answer if answer.strip() else None


def _with_roles(extra: Mapping[str, Any], messages: Sequence[Message]) -> Mapping[str, Any]:
    kept = dict(extra)
    if any(_SHOWN_AS[message.role] != message.role for message in messages):
        kept[ROLES] = [message.role for message in messages]
    if any(message.more for message in messages):
        kept[FIELDS] = [dict(message.more) for message in messages]
    return kept


def write_chat(example: Example) -> tuple[list[Spoken], dict[str, Any]]:
    """The messages of an example, its label as the last answer, and the extra columns that are left."""
    turns: list[tuple[Role, tuple[Part, ...]]] = [(turn.role, turn.parts) for turn in example.history]
    turns.append(("user", example.content))
    if example.label is not None:
        turns.append(("assistant", (Text(example.label),)))
    plain = [role for role, _ in turns]
    extra = dict(example.extra)
    roles: list[ChatRole] = list(plain)
    # What a chat reader kept aside goes back into the messages, as long as it still fits them.
    kept_roles = extra.get(ROLES)
    if isinstance(kept_roles, list) and [_SHOWN_AS.get(role) for role in kept_roles] == plain:
        roles = extra.pop(ROLES)
    more: list[dict[str, Any]] = [{} for _ in turns]
    kept_fields = extra.get(FIELDS)
    if isinstance(kept_fields, list) and [type(item) for item in kept_fields] == [dict] * len(turns):
        more = extra.pop(FIELDS)
    answer = len(example.history) + 1
    spoken = [
        Spoken(role, parts, kept, at == answer)
        for at, (role, (_, parts), kept) in enumerate(zip(roles, turns, more, strict=True))
    ]
    return spoken, extra


def message_row(said: Spoken, role: tuple[str, str], content: tuple[str, Any]) -> dict[str, Any]:
    """A message as an object: its role, its content, and the further keys that it had when it was read."""
    if taken := said.more.keys() & {role[0], content[0]}:
        raise DataError(f"a message has the key {min(taken)!r} of its own, which this format needs; rename it")
    return {role[0]: role[1], content[0]: content[1], **said.more}
