"""A model in this process: ask it single questions, or many."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tuyi.data.example import Example, Image, Part, Text
from tuyi.encode.encoder import Encoder
from tuyi.model.folder import FolderInfo
from tuyi.model.load import Model
from tuyi.predict.local import LocalEngine
from tuyi.predict.prediction import Prediction
from tuyi.predict.run import PredictSettings, choose_tasks
from tuyi.task.catalog import TaskSet

__all__ = ["Classifier", "load"]


class Classifier:
    """A loaded model and its tasks; made by :func:`load`.

    Args:
        model: The model.
        encoder: Of the same model, with its tasks.
        settings: Speed and place.
        info: What the model folder says, its calibration among it.
    """

    def __init__(self, model: Model, encoder: Encoder, settings: PredictSettings, info: FolderInfo | None) -> None:
        self.model, self.encoder = model, encoder
        self._engine = LocalEngine(
            model, encoder, pack_tokens=settings.pack_tokens, workers=settings.workers, info=info
        )

    @property
    def tasks(self) -> TaskSet:
        """The tasks that the model answers."""
        return self.encoder.tasks

    def predict(self, examples: Iterable[Example]) -> list[Prediction]:
        """Predictions of examples, in their order.

        Raises:
            DataError: A row cannot be used; nothing is predicted then.
        """
        rows = [(row, self.encoder.length(row).tokens) for row in examples]
        found = {one.id: one for many in self._engine.predict(rows) for one in many}
        return [found[row.id] for row, _ in rows]

    def classify(self, *parts: str | Path | Part, task: str | None = None) -> Prediction:
        """The label of one question.

        Args:
            parts: Texts (str) and pictures (Path, or :class:`~tuyi.data.example.Image` for bytes), in order.
            task: Name of the task, where the model answers several and the text does not say.
        """
        return self.predict([Example("question", tuple(_parts(parts)), task=task)])[0]


def _parts(parts: Sequence[str | Path | Part]) -> Iterable[Part]:
    for part in parts:
        if isinstance(part, str):
            yield Text(part)
        elif isinstance(part, Path):
            yield Image(part, part.name)
        else:
            yield part


def load(
    model: str | Path, *, task: str | TaskSet | None = None, settings: PredictSettings | None = None
) -> Classifier:
    """Load a model for use in this process.

    Args:
        model: A model folder, hub id or built-in name.
        task: Needed where the model has no task of its own.
        settings: Speed and place.

    Raises:
        ModelError: The model cannot be loaded.
        TaskError: The model has another task, or none and none is given.
    """
    from tuyi.model.load import load_frontend, load_model, peek

    settings = settings or PredictSettings()
    info = peek(str(model))
    tasks = choose_tasks(str(model), info, task)
    frontend = load_frontend(str(model), [text for one in tasks for text in one.wording])
    encoder = Encoder(frontend.tokenizer, frontend.spec, tasks)
    return Classifier(load_model(frontend, device=settings.device, dtype=settings.dtype), encoder, settings, info)
