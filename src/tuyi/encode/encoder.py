"""From an example to its Encoded: the one place where text, pictures and labels become numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from hashlib import blake2b
from typing import Any, TypeAlias

import numpy as np

from tuyi.data.example import Example, Image, Part, Text, Turn, Video
from tuyi.encode.answer import AnswerTokens, LabelTokens
from tuyi.encode.budget import Fit, fit
from tuyi.encode.encoded import Asked, Encoded, Media
from tuyi.encode.positions import mrope_positions, time_step
from tuyi.encode.template import ChatTemplate, Piece
from tuyi.errors import DataError, Place
from tuyi.task.catalog import TaskSet
from tuyi.task.prompt import Prompt
from tuyi.task.task import Budget, Task
from tuyi.vision.spec import ImagePatches, VideoPatches, VisionSpec

__all__ = ["Encoder", "LabelTokens", "Length", "video_budget"]


@dataclass(frozen=True, slots=True)
class Length:
    """The size of a row before its pixels are read.

    Args:
        tokens: Tokens of the row, answer included.
        patches: Patches that pass the vision tower.
        supervised: Tokens that the loss counts.
    """

    tokens: int
    patches: int
    supervised: int


Look: TypeAlias = Callable[[Image, VisionSpec, int, int], ImagePatches]
"""Cuts a picture into patches: :func:`~tuyi.vision.patches.image_patches`, or a pool's way to the same."""
Grid: TypeAlias = tuple[int, int, int]
"""(t, h, w) in patches."""


@dataclass(frozen=True, slots=True)
class _Row:
    """A row before its pixels are read: prompt tokens but for the visual ones, answer tokens, what fits, its media."""

    task: Task
    history: tuple[Turn, ...]
    pieces: list[Piece]
    answer: tuple[int, ...]
    fitted: Fit
    media: list[Image | Video]
    grids: list[Grid]


class Encoder:
    """Encodes examples for one model and its tasks.

    Args:
        tokenizer: The model's fast tokenizer.
        spec: The model's vision facts.
        tasks: The tasks that the model answers.
    """

    def __init__(self, tokenizer: Any, spec: VisionSpec, tasks: TaskSet) -> None:
        self.tasks = tasks
        self.spec = spec
        self._template = ChatTemplate(tokenizer)
        self._image_id: int = tokenizer.convert_tokens_to_ids("<|image_pad|>")
        self._video_id: int = tokenizer.convert_tokens_to_ids("<|video_pad|>")
        self._start_id: int = tokenizer.convert_tokens_to_ids("<|vision_start|>")
        self._stop_id: int = tokenizer.convert_tokens_to_ids("<|vision_end|>")
        self.answers = lru_cache(maxsize=None)(self._answers)

    def _answers(self, task: Task) -> AnswerTokens:
        """The answers of a task in tokens."""
        return AnswerTokens(task, self._template.tokens, self._template.end_id)

    def labels(self, task: Task) -> LabelTokens:
        """What may stand from the label on; where nothing is written freely, the whole answer."""
        return self.answers(task).labels

    def tokens(self, text: str) -> tuple[int, ...]:
        """Token ids of plain text, in which no special token has any power."""
        return self._template.tokens(text)

    def length(self, example: Example, *, labelled: bool | None = None) -> Length:
        """The size of a row, from file headers alone.

        Args:
            example: The row.
            labelled: As for :meth:`encode`; where not given, whether the row has a label.

        Raises:
            DataError: As :meth:`encode`.
        """
        row = self._prepare(example, example.label is not None if labelled is None else labelled)
        tokens = self._tokens(row.pieces, row.media, row.grids) + len(row.answer)
        supervised = len(row.answer)
        if row.task.is_chat:
            supervised += sum(len(piece.ids) for piece in row.pieces if piece.answer)
        return Length(tokens, sum(t * h * w for t, h, w in row.grids), supervised)

    def encode(self, example: Example, *, labelled: bool, look: Look | None = None) -> Encoded:
        """The row as model input.

        Args:
            example: The row.
            labelled: Whether the answer follows the prompt, supervised (training), or not (prediction).
            look: Who cuts pictures into patches; this thread where not given.

        Raises:
            DataError: The row has no label though one is needed, a label outside the set, media that cannot be
                read, or no way to fit the budget; with file, row and id.
        """
        row = self._prepare(example, labelled)
        is_chat = row.task.is_chat
        try:
            patches = [self._patches(part, row.task.budget, row.fitted.max_pixels, look) for part in row.media]
        except DataError as error:
            raise error.at(replace(example.place, id=example.id)) from error.__cause__
        ids: list[int] = []
        supervised: list[bool] = []
        media: list[Media] = []
        for piece in row.pieces:
            if piece.media is None:
                ids.extend(piece.ids)
                supervised.extend([piece.answer and is_chat] * len(piece.ids))
                continue
            visual, spans = self._visual(patches[piece.media], len(ids))
            key = None if labelled else _key(patches[piece.media])
            media.append(Media(patches[piece.media], spans, key))
            ids.extend(visual)
            supervised.extend([False] * len(visual))
        ids.extend(row.answer)
        supervised.extend([True] * len(row.answer))
        return Encoded(
            id=example.id,
            task=row.task.name,
            ids=np.asarray(ids, np.int32),
            supervised=np.asarray(supervised, bool),
            positions=mrope_positions(len(ids), self._blocks(media), self.spec.merge_size),
            media=tuple(media),
            weight=example.weight,
            notes=row.fitted.notes,
        )

    def ask(self, example: Example) -> Asked:
        """The row for an engine outside this process, with the tokens and pixels that :meth:`encode` would give it.

        Raises:
            DataError: As :meth:`encode`; or the row shows a video.
        """
        row = self._prepare(example, labelled=False)
        if any(isinstance(part, Video) for part in row.media):
            place = replace(example.place, id=example.id)
            raise DataError("the row shows a video, which this engine cannot send; use --engine local", place)
        pictures = (self._patches(part, row.task.budget, row.fitted.max_pixels) for part in row.media)
        ids: list[int] = []
        for piece in row.pieces:
            ids.extend(piece.ids if piece.media is None else (self._start_id, self._image_id, self._stop_id))
        return Asked(
            id=example.id,
            task=row.task,
            turns=(*row.history, Turn("user", row.fitted.parts)),
            pictures=tuple(picture for picture in pictures if isinstance(picture, ImagePatches)),
            ids=tuple(ids),
            tokens=self._tokens(row.pieces, row.media, row.grids),
            notes=row.fitted.notes,
        )

    def unshortened(self, example: Example) -> int:
        """Tokens of a row before it gives anything up for its budget, room for the longest answer included.

        Raises:
            DataError: Media that cannot be read.
        """
        task = self.tasks.of(example)
        prompt = task.ask(example)
        pieces = self._template.pieces((*prompt.history, Turn("user", prompt.parts())))
        media = _shown(prompt, prompt.parts())
        grids = [self._grid(part, task.budget, task.budget.max_pixels) for part in media]
        return self._tokens(pieces, media, grids) + self.answers(task).most

    def _tokens(self, pieces: Sequence[Piece], media: Sequence[Image | Video], grids: Sequence[Grid]) -> int:
        return sum(len(piece.ids) for piece in pieces) + self._visual_length(media, grids)

    def _prepare(self, example: Example, labelled: bool) -> _Row:
        """All of a row but its pixels; each file's header is read once."""
        place = replace(example.place, id=example.id)
        task = self.tasks.of(example)
        try:
            answer = self._answer(task, example, place) if labelled else ()
            reserved = len(answer) or self.answers(task).most
            prompt = task.ask(example)

            @cache
            def pieces(parts: tuple[Part, ...]) -> list[Piece]:
                return self._template.pieces((*prompt.history, Turn("user", parts)))

            @cache
            def grid(part: Image | Video, pixels: int) -> Grid:
                return self._grid(part, task.budget, pixels)

            def length(parts: tuple[Part, ...], pixels: int) -> int:
                media = _shown(prompt, parts)
                return self._tokens(pieces(parts), media, [grid(part, pixels) for part in media]) + reserved

            fitted = fit(prompt, task.budget, length, self.spec.factor**2)
        except DataError as error:
            raise error.at(place) from error.__cause__
        media = _shown(prompt, fitted.parts)
        grids = [grid(part, fitted.max_pixels) for part in media]
        return _Row(task, prompt.history, pieces(fitted.parts), answer, fitted, media, grids)

    def _answer(self, task: Task, example: Example, place: Place) -> tuple[int, ...]:
        if example.label is None:
            raise DataError("expected a label, found none; remove unlabelled rows or predict them", place)
        label = task.labels.canonical(example.label) if task.labels else example.label
        try:
            return self.answers(task).taught(label, example.rationale)
        except ValueError as error:
            raise DataError(str(error), place) from error

    def _grid(self, part: Image | Video, budget: Budget, max_pixels: int) -> tuple[int, int, int]:
        if isinstance(part, Image):
            from tuyi.vision.image import probe_image
            from tuyi.vision.patches import image_grid

            info = probe_image(part)
            return image_grid(info.width, info.height, self.spec, min(budget.min_pixels, max_pixels), max_pixels)
        from tuyi.vision.video import probe_video, video_grid

        return video_grid(probe_video(part), self.spec, video_budget(budget, max_pixels))

    def _patches(
        self, part: Image | Video, budget: Budget, max_pixels: int, look: Look | None = None
    ) -> ImagePatches | VideoPatches:
        if isinstance(part, Image):
            from tuyi.vision.patches import image_patches

            return (look or image_patches)(part, self.spec, min(budget.min_pixels, max_pixels), max_pixels)
        from tuyi.vision.video import video_patches

        return video_patches(part, self.spec, video_budget(budget, max_pixels))

    def _visual_length(self, media: Sequence[Image | Video], grids: Sequence[tuple[int, int, int]]) -> int:
        """Tokens of the media with their vision marks; for Qwen3-VL's timestamps an upper bound."""
        total = 0
        for part, grid in zip(media, grids):
            total += _visual_tokens(grid, self.spec.merge_size) + 2
            if isinstance(part, Video) and self.spec.family == "qwen3_vl":
                total += grid[0] * (len(self._template.tokens("<9999.9 seconds>")) + 2)
        return total

    def _visual(self, patches: ImagePatches | VideoPatches, at: int) -> tuple[list[int], tuple[tuple[int, int], ...]]:
        """The tokens of one picture or video at token ``at``, vision marks included, and where its visual ones stand.

        Qwen3-VL puts each temporal patch of a video in marks of its own, behind its time in seconds.
        """
        count = _visual_tokens(patches.grid, self.spec.merge_size)
        if isinstance(patches, ImagePatches):
            return [self._start_id, *[self._image_id] * count, self._stop_id], ((at + 1, at + 1 + count),)
        if self.spec.family != "qwen3_vl":
            return [self._start_id, *[self._video_id] * count, self._stop_id], ((at + 1, at + 1 + count),)
        # the processor fills in the pad token alone, so each frame's own marks stand inside those of the template
        ids: list[int] = [self._start_id]
        spans: list[tuple[int, int]] = []
        a_frame = count // patches.grid[0]
        for second in patches.timestamps:
            ids.extend((*self._template.tokens(f"<{second:.1f} seconds>"), self._start_id))
            spans.append((at + len(ids), at + len(ids) + a_frame))
            ids.extend((*[self._video_id] * a_frame, self._stop_id))
        return [*ids, self._stop_id], tuple(spans)

    def _blocks(self, media: Sequence[Media]) -> list[tuple[int, tuple[int, int, int], float]]:
        blocks: list[tuple[int, tuple[int, int, int], float]] = []
        for item in media:
            t, h, w = item.patches.grid
            step = time_step(item.patches, self.spec.family, self.spec.tokens_per_second)
            each = (1, h, w) if len(item.spans) > 1 else (t, h, w)
            blocks.extend((begin, each, step) for begin, _ in item.spans)
        return blocks


def _key(patches: ImagePatches | VideoPatches) -> bytes:
    """A hash of the pixels and their grid."""
    grid = np.asarray(patches.grid, np.uint32).tobytes()
    return blake2b(patches.values.data, digest_size=16, person=grid).digest()


def _media(parts: Iterable[Part]) -> list[Image | Video]:
    return [part for part in parts if not isinstance(part, Text)]


def _shown(prompt: Prompt, parts: Sequence[Part]) -> list[Image | Video]:
    """The media of a conversation, those of its history first."""
    return [*_media(part for turn in prompt.history for part in turn.parts), *_media(parts)]


def _visual_tokens(grid: tuple[int, int, int], merge_size: int) -> int:
    t, h, w = grid
    return t * h * w // merge_size**2


def video_budget(budget: Budget, max_pixels: int) -> Budget:
    """A row whose pictures had to shrink shrinks its video frames in the same measure."""
    if max_pixels == budget.max_pixels:
        return budget
    share = max_pixels / budget.max_pixels
    return budget.model_copy(
        update={
            "min_pixels": min(budget.min_pixels, max_pixels),
            "video_max_pixels": max(1, int(budget.video_max_pixels * share)),
            "video_total_pixels": max(1, int(budget.video_total_pixels * share)),
        }
    )
