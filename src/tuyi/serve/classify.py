"""``POST /v1/classify``: what is asked, and what is answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pydantic import Field, model_validator

from tuyi.data.example import Example, Image, Part, Text
from tuyi.data.formats.media import IMAGE_MARK
from tuyi.encode.encoder import Encoder
from tuyi.errors import TaskError
from tuyi.model.decode import extended
from tuyi.model.folder import FolderInfo
from tuyi.predict.calibrated import calibrated
from tuyi.serve.asked import Asked, held
from tuyi.serve.jobs import Answered, Labelled, Row, Script
from tuyi.serve.refusals import RefusalError

__all__ = ["ClassifyRequest", "answered", "row_of"]


class ContentPart(Asked):
    """A stretch of text or a picture, in its place."""

    text: str | None = None
    image: str | None = None

    @model_validator(mode="after")
    def _one(self) -> ContentPart:
        if (self.text is None) == (self.image is None):
            raise ValueError("expected either text or image")
        return self


class ClassifyRequest(Asked):
    """A dialogue with its pictures.

    Either ``parts``, in order; or ``text`` with ``images``, whose places are the ``<image>`` marks in the text, or
    before it where it has none.
    """

    task: str | None = None
    """Name of the task, where the model answers several and the text does not say."""
    parts: list[ContentPart] | None = Field(default=None, min_length=1)
    """The content, in order."""
    text: str | None = None
    """The text of the content, instead of ``parts``."""
    images: list[str] = Field(default_factory=list)
    """The pictures of ``text``: data URLs."""
    id: str | None = Field(default=None, max_length=200)
    """Comes back with the answer."""

    @model_validator(mode="after")
    def _either(self) -> ClassifyRequest:
        if self.parts is not None and (self.text is not None or self.images):
            raise ValueError("expected either parts, or text and images; found both")
        if self.parts is None and self.text is None and not self.images:
            raise ValueError("expected parts, or text and images; found neither")
        marks = (self.text or "").count(IMAGE_MARK)
        if self.images and marks not in (0, len(self.images)):
            raise ValueError(
                f"{marks} {IMAGE_MARK} in the text but {len(self.images)} images; expected one mark for each, or none"
            )
        return self

    def content(self, picture: Callable[[str, str], Image]) -> tuple[Part, ...]:
        """The content; ``picture`` makes one of a URL and the place where it stands."""
        if self.parts is not None:
            return tuple(
                Text(part.text) if part.text is not None else picture(part.image or "", f"parts.{at}.image")
                for at, part in enumerate(self.parts)
            )
        pictures = [picture(url, f"images.{at}") for at, url in enumerate(self.images)]
        text = self.text or ""
        if not pictures or IMAGE_MARK not in text:
            return (*pictures, Text(text))
        stretches = text.split(IMAGE_MARK)
        placed = [part for stretch, one in zip(stretches, pictures) for part in (Text(stretch), one)]
        return (*placed, Text(stretches[-1]))


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
