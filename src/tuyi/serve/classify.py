"""``POST /v1/classify``: what is asked, and what is answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import Field, model_validator

from tuyi.data.example import Example, Image, Part, Text, Video
from tuyi.data.formats.media import IMAGE_MARK, VIDEO_MARK, placed
from tuyi.encode.encoder import Encoder
from tuyi.errors import TaskError
from tuyi.model.decode import extended
from tuyi.model.folder import FolderInfo
from tuyi.predict.calibrated import calibrated
from tuyi.serve.asked import Asked, held
from tuyi.serve.jobs import Answered, Labelled, Row, Script
from tuyi.serve.refusals import RefusalError
from tuyi.serve.shown import Shown, is_slow

__all__ = ["ClassifyRequest", "answered", "row_of"]


class ContentPart(Asked):
    """A stretch of text, a picture or a video, in its place."""

    text: str | None = None
    image: str | None = None
    video: str | None = None

    @model_validator(mode="after")
    def _one(self) -> ContentPart:
        if sum(one is not None for one in (self.text, self.image, self.video)) != 1:
            raise ValueError("expected either text, image or video")
        return self

    def part(self, shown: Shown, name: str) -> Part:
        """What it stands for; ``name`` says where it stands."""
        if self.image is not None:
            return shown.picture(self.image, f"{name}.image")
        if self.video is not None:
            return shown.video(self.video, f"{name}.video")
        return Text(self.text or "")


class ClassifyRequest(Asked):
    """A dialogue with its pictures and videos.

    Either ``parts``, in order; or ``text`` with ``images`` and ``videos``, whose places are the ``<image>`` and
    ``<video>`` marks in the text, or before it where it has none.
    """

    task: str | None = None
    """Name of the task, where the model answers several and the text does not say."""
    parts: list[ContentPart] | None = Field(default=None, min_length=1)
    """The content, in order."""
    text: str | None = None
    """The text of the content, instead of ``parts``."""
    images: list[str] = Field(default_factory=list)
    """The pictures of ``text``: data URLs."""
    videos: list[str] = Field(default_factory=list)
    """The videos of ``text``: data URLs."""
    id: str | None = Field(default=None, max_length=200)
    """Comes back with the answer."""

    @model_validator(mode="after")
    def _either(self) -> ClassifyRequest:
        media = self.images or self.videos
        if self.parts is not None and (self.text is not None or media):
            raise ValueError("expected either parts, or text and images; found both")
        if self.parts is None and self.text is None and not media:
            raise ValueError("expected parts, or text and images; found neither")
        for mark, noun, found in ((IMAGE_MARK, "images", self.images), (VIDEO_MARK, "videos", self.videos)):
            marks = (self.text or "").count(mark)
            if found and marks not in (0, len(found)):
                raise ValueError(
                    f"{marks} {mark} in the text but {len(found)} {noun}; expected one mark for each, or none"
                )
        return self

    @property
    def is_slow(self) -> bool:
        """Whether it takes a while to read what it shows."""
        videos = self.videos or any(part.video for part in self.parts or ())
        images = (*self.images, *(part.image or "" for part in self.parts or ()))
        return bool(videos) or any(map(is_slow, images))

    def content(self, shown: Shown) -> tuple[Part, ...]:
        """The content, with what ``shown`` makes of its pictures and videos."""
        if self.parts is not None:
            return tuple(part.part(shown, f"parts.{at}") for at, part in enumerate(self.parts))
        text = self.text or ""
        pictures = [shown.picture(url, f"images.{at}") for at, url in enumerate(self.images)]
        videos = [shown.video(url, f"videos.{at}") for at, url in enumerate(self.videos)]
        waiting: dict[str, Sequence[Image | Video]] = {IMAGE_MARK: pictures, VIDEO_MARK: videos}
        before = [part for mark, media in waiting.items() if mark not in text for part in media]
        at_marks = {mark: [*media] for mark, media in waiting.items() if media and mark in text}
        return (*before, *placed(text, at_marks))


def row_of(example: Example, encoder: Encoder, characters: int) -> Row:
    """What the model is asked for an example.

    Args:
        example: The content, and the name of its task where the client gives it.
        encoder: With the model's tasks.
        characters: Most of its text.

    Raises:
        RefusalError: More text than that, or no task.
        DataError: The content cannot be used.
    """
    held(example, characters)
    names = ", ".join(task.name for task in encoder.tasks)
    try:
        task = encoder.tasks[example.task] if example.task is not None else encoder.tasks.of(example)
    except TaskError as error:
        found = "none, and the text does not say" if example.task is None else repr(example.task)
        message = f"task: expected one of {names}; found {found}"
        raise RefusalError(400, message, param="task", code="unknown_task") from error
    encoded = encoder.encode(replace(example, task=task.name), labelled=False)
    if task.answer.is_plain:
        return Row(encoded, task.name, labels=encoder.labels(task))
    answers = encoder.answers(task)
    script = Script(answers.stages, answers.most)
    return Row(extended(encoded, answers.opening), task.name, script=script, opening=len(answers.opening))


def answered(row: Row, found: Labelled | Answered, info: FolderInfo | None) -> dict[str, Any]:
    """The part of an answer that the model gives: label, probabilities, reason, notes."""
    notes: dict[str, Any] = {**row.encoded.notes, "tokens": len(row.encoded), "calls": 1, "output_tokens": 0}
    rationale = None
    if isinstance(found, Labelled):
        logprobs = dict(zip(row.choice.names, map(float, found.logprobs)))
        label = row.choice.names[int(found.logprobs.argmax())]
    else:
        logprobs, rationale = dict(found.logprobs), found.texts.get("rationale")
        label = found.texts["answer"] if found.label is None else found.label
        notes |= {"tokens": len(row.encoded) - row.opening, "output_tokens": found.output_tokens}
        notes |= {"cut_free": True} if found.is_cut else {}
    return {
        "task": row.task,
        "label": label,
        "probabilities": calibrated(logprobs, info, row.task) if logprobs else {},
        "logprobs": logprobs,
        "rationale": rationale,
        "notes": notes,
    }
