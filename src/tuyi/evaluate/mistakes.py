"""Mistakes as a person looks at them: the dialogue as bubbles, small pictures, the labels that were near."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from tuyi.data.example import Image, Part, Text, Video
from tuyi.errors import MediaError
from tuyi.evaluate.rows import Mistake
from tuyi.task.prompt import split_turns

if TYPE_CHECKING:
    from PIL import Image as Pillow

__all__ = ["Bubble", "MistakeView", "NearLabel", "Picture", "film_strip", "thumbnail", "view"]

SPEAKER = re.compile(r"(用户|客服|User|Customer|Agent|Assistant)[ \t]*[:：][ \t]*")
CUSTOMERS = {"用户", "User", "Customer", "user"}
SHOWN_BUBBLES, SHOWN_LABELS, SHOWN_PICTURES = 6, 5, 6
STRIP_FRAMES = 4
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

    def data(self, *, problems: bool = True) -> dict[str, Any]:
        """It as plain data, for scripts of a page.

        Args:
            problems: Whether to say why a picture is not shown, which tells its path.
        """
        pieces: list[dict[str, str]] = []
        for piece in self.pieces:
            if isinstance(piece, str):
                pieces.append({"text": piece})
            elif piece.uri is not None:
                pieces.append({"uri": piece.uri, "name": piece.name})
            else:
                pieces.append({"name": piece.name, **({"problem": piece.problem} if problems else {})})
        return {"who": self.speaker, "side": self.side, "pieces": pieces}


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


def view(mistake: Mistake, side: int, pictures: int = SHOWN_PICTURES) -> MistakeView:
    """Everything that the report shows of a mistake.

    Args:
        mistake: The row and its prediction.
        side: Longer side of its pictures, in pixels.
        pictures: Most pictures and videos of it that are shown; the others are named.
    """
    example, prediction = mistake.example, mistake.prediction
    bubbles = _bubbles(mistake, _Pictures(side, pictures))
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


def _bubbles(mistake: Mistake, pictures: _Pictures) -> tuple[Bubble, ...]:
    example = mistake.example
    content: Iterable[Part] = example.content
    if mistake.task is not None:
        content = chain.from_iterable(mistake.task.ask(example).turns)
    spoken = [(turn.role, turn.parts) for turn in example.history if turn.role != "system"]
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
    """Embeds the first pictures and videos of a row and names the others."""

    def __init__(self, side: int, most: int) -> None:
        self.side, self.most = side, most
        self.count = 0

    def of(self, media: Image | Video) -> Picture:
        name = media.name or (media.source.name if not isinstance(media.source, bytes) else str(media))
        self.count += 1
        if self.count > self.most:
            return Picture(name, problem=f"only the first {self.most} pictures of a row are shown")
        try:
            small = film_strip(media, self.side) if isinstance(media, Video) else thumbnail(media, self.side)
            return Picture(name, uri=small)
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
    return _data_url(picture)


def film_strip(video: Video, side: int) -> str:
    """A few frames of a video beside each other, as a small JPEG in a ``data:`` address.

    Args:
        video: The video.
        side: Longer side of a frame in pixels.

    Raises:
        MediaError: The video cannot be opened.
    """
    from PIL import Image as Pillow

    from tuyi.vision.video_file import probe_video, read_frames

    many = probe_video(video).frames
    count = min(STRIP_FRAMES, many)
    frames = [
        Pillow.fromarray(frame)
        for frame in read_frames(video, [(2 * k + 1) * many // (2 * count) for k in range(count)])
    ]
    for frame in frames:
        frame.thumbnail((side, side))
    wide, tall = frames[0].size
    strip = Pillow.new("RGB", ((wide + 4) * count - 4, tall), "white")
    for number, frame in enumerate(frames):
        strip.paste(frame, (number * (wide + 4), 0))
    return _data_url(strip)


def _data_url(picture: Pillow.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
