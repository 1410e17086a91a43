"""One row of data: what the model is shown, and what it should answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from tuyi.errors import Place

__all__ = ["Example", "Image", "Part", "Role", "Text", "Turn", "Video"]

Role: TypeAlias = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Text:
    """A stretch of text."""

    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """A reference to a picture, not yet opened.

    Args:
        source: Path of the file, or the encoded file itself (JPEG, PNG, … bytes).
        name: The reference as the data file spells it, so that writing it back changes nothing.
    """

    source: Path | bytes
    name: str = ""

    def __str__(self) -> str:
        return str(self.source) if isinstance(self.source, Path) else (self.name or f"{len(self.source)} bytes")


@dataclass(frozen=True, slots=True)
class Video:
    """A reference to a video, not yet opened; arguments as for :class:`Image`."""

    source: Path | bytes
    name: str = ""

    def __str__(self) -> str:
        return str(self.source) if isinstance(self.source, Path) else (self.name or f"{len(self.source)} bytes")


Part: TypeAlias = Text | Image | Video


@dataclass(frozen=True, slots=True)
class Turn:
    """One earlier message of a chat."""

    role: Role
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Example:
    """One row of data. Immutable; media stay references until they are encoded.

    Args:
        id: Unique name of the row within its file.
        content: The last user message, in order, as the file has it.
        task: Name of the task, where the file says it; else recognised from the content.
        label: The answer as the file spells it, or None where nobody labelled the row.
        rationale: Why the label is right, where somebody wrote it down.
        weight: Weight in the training loss.
        soft: A teacher's distribution over the labels, as the file spells them; those that are missing count 0.
        history: Earlier messages (system prompt, multi-turn chats), oldest first.
        place: File and row that it came from.
        extra: Further columns of the file, kept so that writing it back loses nothing.
    """

    id: str
    content: tuple[Part, ...]
    task: str | None = None
    label: str | None = None
    rationale: str | None = None
    weight: float = 1.0
    soft: Mapping[str, float] | None = None
    history: tuple[Turn, ...] = ()
    place: Place = field(default_factory=Place, compare=False)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The text of the content alone, media left out."""
        return "".join(part.text for part in self.content if isinstance(part, Text))

    @property
    def images(self) -> tuple[Image, ...]:
        """Pictures of history and content, in order."""
        return tuple(part for part in self.parts if isinstance(part, Image))

    @property
    def videos(self) -> tuple[Video, ...]:
        """Videos of history and content, in order."""
        return tuple(part for part in self.parts if isinstance(part, Video))

    @property
    def parts(self) -> tuple[Part, ...]:
        """Every part that the row shows, history first."""
        return (*(part for turn in self.history for part in turn.parts), *self.content)
