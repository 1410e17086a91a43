"""One model for each task behind one engine: every row goes to the model of its task."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping

from tuyi.encode.encoder import Encoder
from tuyi.predict.engine import SizedRow
from tuyi.predict.local import LocalEngine
from tuyi.predict.prediction import Prediction

__all__ = ["MembersEngine"]


class MembersEngine:
    """Scores rows with the model of each row's task, one model at a time.

    Args:
        engines: By task; each is closed with this one.
        encoder: Of all the tasks.
        window: Rows of a task that are scored before the next task's turn; also the most of each that wait.
    """

    def __init__(self, engines: Mapping[str, LocalEngine], encoder: Encoder, window: int) -> None:
        self.encoder = encoder
        self._engines, self._window = engines, window

    def predict(self, rows: Iterable[SizedRow]) -> Generator[list[Prediction], None, None]:
        """Predictions of a stream of rows, window by window, each window of one task.

        Raises:
            ModelError, DataError: As :meth:`LocalEngine.predict`.
        """
        waiting: dict[str, list[SizedRow]] = {task: [] for task in self._engines}
        for row in rows:
            task = self.encoder.tasks.of(row[0]).name
            waiting[task].append(row)
            if len(waiting[task]) == self._window:
                yield from self._engines[task].predict(waiting[task])
                waiting[task] = []
        for task, left in waiting.items():
            if left:
                yield from self._engines[task].predict(left)

    def close(self) -> None:
        """End threads and processes; safe to call twice."""
        for engine in self._engines.values():
            engine.close()
