"""Mistakes as a person looks at them: the dialogue as bubbles, small pictures, the labels that were near."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

from tuyi.data.example import Image, Part, Text, Video
from tuyi.errors import MediaError
from tuyi.evaluate.rows import Mistake
from tuyi.task.prompt import split_turns

__all__ = ["Bubble", "MistakeView", "NearLabel", "Picture", "thumbnail", "view"]

SPEAKER = re.compile(r"(用户|客服|User|Customer|Agent|Assistant)[ \t]*[:：][ \t]*")
CUSTOMERS = {"用户", "User", "Customer", "user"}
SHOWN_BUBBLES, SHOWN_LABELS, SHOWN_PICTURES = 6, 5, 6
LONG_TEXT = 700


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of a row: embedded, or its name with the reason why it is not."""

    name: str
    uri: str | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Bubble:
    """One turn of a dialogue, or a stretch of plain text where ``speaker`` is empty.

    Args:
        side: ``customer``, ``agent`` or ``plain``.
        pieces: Texts and pictures, in order.
        length: Characters of its text; a long one is folded.
    """

    speaker: str
    side: str
    pieces: tuple[str | Picture, ...]
    length: int

    @property
    def is_long(self) -> bool:
        """Whether the text is folded."""
        return self.length > LONG_TEXT


@dataclass(frozen=True, slots=True)
class NearLabel:
    """A label with its probability and its rank among all."""

    label: str
    probability: float
    rank: int
    kind: str


@dataclass(frozen=True, slots=True)
class MistakeView:
    """What the report shows of a mistake; ``earlier`` bubbles are folded away."""

    id: str
    place: str
    gold: str
    predicted: str
    confidence: float | None
    near: tuple[NearLabel, ...]
    earlier: tuple[Bubble, ...]
    bubbles: tuple[Bubble, ...]
    rationale: str | None
    notes: tuple[str, ...]

    @property
    def is_visual(self) -> bool:
        """Whether the row is one picture alone, which stands beside the labels instead of above them."""
        pieces = [piece for bubble in (*self.earlier, *self.bubbles) for piece in bubble.pieces]
        return len(pieces) == 1 and isinstance(pieces[0], Picture)


def view(mistake: Mistake, side: int) -> MistakeView:
    """Everything that the report shows of a mistake.

    Args:
        mistake: The row and its prediction.
        side: Longer side of its pictures, in pixels.
    """
    example, prediction = mistake.example, mistake.prediction
    bubbles = _bubbles(mistake, side)
    notes = []
    if dropped := prediction.notes.get("dropped_turns"):
        notes.append(f"the oldest turns were left out to fit the token budget ({dropped} of them)")
    if shrunk := prediction.notes.get("shrunk_images"):
        notes.append(f"pictures were shrunk to fit the token budget (at most {shrunk:,} pixels each)")
    if cut := prediction.notes.get("cut_characters"):
        notes.append(f"text was cut to fit the token budget ({cut} characters)")
    return MistakeView(
        id=example.id,
        place=f"row {example.place.row}" if example.place.row is not None else "",
        gold=mistake.gold,
        predicted=prediction.label,
        confidence=mistake.confidence,
        near=_near(mistake),
        earlier=bubbles[:-SHOWN_BUBBLES],
        bubbles=bubbles[-SHOWN_BUBBLES:],
        rationale=prediction.rationale,
        notes=tuple(notes),
    )


def _near(mistake: Mistake) -> tuple[NearLabel, ...]:
    """The likeliest labels, and the true one behind them where it is not among them."""
    ranked = sorted(mistake.prediction.probabilities.items(), key=lambda item: -item[1])
    kinds = {mistake.prediction.label: "wrong", mistake.gold: "gold"}
    near = [NearLabel(name, value, rank, kinds.get(name, "")) for rank, (name, value) in enumerate(ranked, start=1)]
    return (*near[:SHOWN_LABELS], *(item for item in near[SHOWN_LABELS:] if item.kind == "gold"))


def _bubbles(mistake: Mistake, side: int) -> tuple[Bubble, ...]:
    example = mistake.example
    content: Iterable[Part] = example.content
    if mistake.task is not None:
        content = chain.from_iterable(mistake.task.ask(example).turns)
    spoken = [(turn.role, turn.parts) for turn in example.history if turn.role != "system"]
    pictures = _Pictures(side)
    found = [_bubble(parts, role, pictures) for role, parts in spoken]
    found += [_bubble(parts, "", pictures) for parts in split_turns(tuple(content), SPEAKER)]
    return tuple(bubble for bubble in found if bubble.pieces)


def _bubble(parts: tuple[Part, ...], speaker: str, pictures: _Pictures) -> Bubble:
    pieces: list[str | Picture] = []
    for index, part in enumerate(parts):
        if not isinstance(part, Text):
            pieces.append(pictures.of(part))
            continue
        text = part.text
        if index == 0 and not speaker and (match := SPEAKER.match(text)):
            speaker, text = match[1], text[match.end() :]
        if text.strip():
            pieces.append(text.strip("\n"))
    side = "plain" if not speaker else "customer" if speaker in CUSTOMERS else "agent"
    return Bubble(speaker, side, tuple(pieces), sum(len(piece) for piece in pieces if isinstance(piece, str)))


class _Pictures:
    """Embeds the first pictures of a row and names the others."""

    def __init__(self, side: int) -> None:
        self.side = side
        self.count = 0

    def of(self, media: Image | Video) -> Picture:
        name = media.name or (media.source.name if not isinstance(media.source, bytes) else str(media))
        if isinstance(media, Video):
            return Picture(name, problem="a video")
        self.count += 1
        if self.count > SHOWN_PICTURES:
            return Picture(name, problem=f"only the first {SHOWN_PICTURES} pictures of a row are shown")
        try:
            return Picture(name, uri=thumbnail(media, self.side))
        except MediaError as error:
            return Picture(name, problem=error.message)


def thumbnail(image: Image, side: int) -> str:
    """A picture as a small JPEG in a ``data:`` address.

    Args:
        image: The picture.
        side: Longer side in pixels; smaller pictures stay as they are.

    Raises:
        MediaError: The picture cannot be opened.
    """
    from tuyi.vision.image import load_rgb

    picture = load_rgb(image)
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
