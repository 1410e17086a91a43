"""A model in this process: ask it single questions, or many."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tuyi.data.example import Example, Image, Part, Text
from tuyi.errors import ModelError
from tuyi.model.load import Model
from tuyi.model.tasks import choose_tasks
from tuyi.predict.local import LocalEngine
from tuyi.predict.members import MembersEngine
from tuyi.predict.prediction import Prediction
from tuyi.predict.settings import PredictSettings
from tuyi.task.catalog import TaskSet

__all__ = ["Classifier", "load"]


class Classifier:
    """A loaded model and its tasks; made by :func:`load`.

    Args:
        engine: With the model, or one for each task, on a device of this process.
    """

    def __init__(self, engine: LocalEngine | MembersEngine) -> None:
        self.encoder = engine.encoder
        self._engine = engine

    @property
    def model(self) -> Model:
        """The model.

        Raises:
            ModelError: There is one for each task.
        """
        if isinstance(self._engine, MembersEngine):
            raise ModelError("there is a model for each task; load the folder of one of them to get at it")
        return self._engine.model

    @property
    def tasks(self) -> TaskSet:
        """The tasks that the model answers."""
        return self.encoder.tasks

    def close(self) -> None:
        """End the threads and processes that read pictures; safe to call twice."""
        self._engine.close()

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
        ConfigError: Limits that the answers of a task cannot keep to.
    """
    from tuyi.encode.encoder import Encoder
    from tuyi.model.load import load_frontend, peek
    from tuyi.predict.limits import keep_limits
    from tuyi.predict.loading import Job, open_local

    settings = settings or PredictSettings()
    tasks = choose_tasks(str(model), peek(str(model)), task)
    frontend = load_frontend(str(model), [text for one in tasks for text in one.wording])
    tasks = keep_limits(tasks, Encoder(frontend.tokenizer, frontend.spec, tasks), settings)
    engine = open_local(Job(str(model), tasks, settings, rows=0), frontend)
    return Classifier(engine)
