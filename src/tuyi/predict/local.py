"""The local engine: rows to predictions on this machine's model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

from tuyi.data.example import Example
from tuyi.encode.encoded import Encoded
from tuyi.encode.encoder import Encoder
from tuyi.encode.pack import group
from tuyi.errors import ModelError
from tuyi.model.folder import FolderInfo
from tuyi.model.load import Model
from tuyi.predict.prediction import Prediction
from tuyi.predict.scoring import normalise, score_labels

__all__ = ["LocalEngine"]

_WINDOW = 1024  # rows sorted by length together; also the most that wait for each other


class LocalEngine:
    """Scores rows in packs sorted by length.

    Args:
        model: The model.
        encoder: Of the same model, with its tasks.
        pack_tokens: Most tokens of one pack, label branches included.
        workers: Threads that read and resize pictures ahead of the model.
        info: Where the calibration temperatures come from.
    """

    def __init__(
        self, model: Model, encoder: Encoder, *, pack_tokens: int, workers: int, info: FolderInfo | None = None
    ) -> None:
        self._model, self._encoder, self._info = model, encoder, info
        self._pack_tokens, self._workers = pack_tokens, workers

    def predict(self, rows: Iterable[tuple[Example, int]]) -> Iterator[list[Prediction]]:
        """Predictions of a stream of (row, its tokens); window by window in order, each window's packs as they finish.

        Raises:
            ModelError: A row's task needs free text, which this engine does not decode.
        """
        rows = iter(rows)
        with ThreadPoolExecutor(self._workers) as pool:
            while window := list(islice(rows, _WINDOW)):
                window.sort(key=lambda row: row[1], reverse=True)
                packs = list(group(((row, size + self._branch_tokens(row)) for row, size in window), self._pack_tokens))
                ahead = 2 * self._workers
                encoded = [pool.submit(self._encode, rows) for rows in packs[:ahead]]
                for index in range(len(packs)):
                    if index + ahead < len(packs):
                        encoded.append(pool.submit(self._encode, packs[index + ahead]))
                    ready, encoded[index] = encoded[index].result(), None  # type: ignore[call-overload]
                    yield self.score(ready)

    def score(self, encoded: Sequence[Encoded]) -> list[Prediction]:
        """Predictions of rows that pass the model together."""
        tasks = [self._encoder.tasks[row.task] for row in encoded]
        labels = [self._encoder.labels(task) for task in tasks]
        scores = score_labels(self._model, encoded, labels)
        predictions = []
        for row, answers, logprobs in zip(encoded, labels, scores):
            temperature = self._info.temperature(row.task) if self._info else 1.0
            chances = normalise(logprobs, temperature)
            notes: dict[str, Any] = {**row.notes, "tokens": len(row), "calls": 1, "output_tokens": 0}
            predictions.append(
                Prediction(
                    id=row.id,
                    task=row.task,
                    label=answers.names[int(logprobs.argmax())],
                    logprobs=dict(zip(answers.names, map(float, logprobs))),
                    probabilities=dict(zip(answers.names, map(float, chances))),
                    notes=notes,
                )
            )
        return predictions

    def _encode(self, rows: Sequence[Example]) -> list[Encoded]:
        return [self._encoder.encode(row, labelled=False) for row in rows]

    def _branch_tokens(self, row: Example) -> int:
        task = self._encoder.tasks.of(row)
        if not task.answer.is_plain:
            raise ModelError(f"task {task.name} answers with more than a label; this engine scores labels only")
        return sum(self._encoder.labels(task).branch_lengths)
