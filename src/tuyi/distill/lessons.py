"""Rows that a teacher is asked through any engine, each answer kept in a file so that none is asked for twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path

from tuyi.data.example import Example, Text
from tuyi.data.problem import Problem
from tuyi.encode.encoder import Encoder
from tuyi.encode.survey import OnBadRow, survey
from tuyi.errors import AnswerError, DataError, EngineError, TuyiError
from tuyi.model.folder import need_one_model
from tuyi.model.load import load_frontend
from tuyi.model.tiny import NAMES
from tuyi.predict.engine import Engine
from tuyi.predict.loading import Job
from tuyi.predict.opening import open_engine
from tuyi.predict.prediction import Prediction, read_predictions
from tuyi.predict.resume import cut_partial_line
from tuyi.predict.settings import PredictSettings
from tuyi.task.catalog import TaskSet

__all__ = ["Lesson", "Lessons", "first_texts"]

_HOPELESS = 20
"""So many failures without one answer, and the run stops: it is not the rows."""


@dataclass(slots=True)
class Lesson:
    """What a teacher said of some rows.

    Args:
        answers: By the row's id, those of earlier runs among them.
        failed: What is wrong with each row that was not answered.
        skipped: Rows that could not be asked, each with what is wrong with it.
        earlier: How many of the answers an earlier run has brought.
        seconds: Time that the others took, a teacher's loading not counted.
    """

    answers: dict[str, Prediction]
    failed: dict[str, str] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    earlier: int = 0
    seconds: float = 0.0


class Lessons:
    """Asks a teacher. It is loaded, or its server reached, when there is something to ask.

    Args:
        name: A model folder or hub id; with the engine ``api`` it can also be the name of a model there.
        tasks: The tasks that will be asked.
        answers: File of the answers, a predictions file; those in it are not asked for again.
        settings: How the teacher runs.
        sized_by: For a model that is known by its server alone, whose tokenizer and picture sizes are used.
        texts: What a built-in model's tokenizer is learned from.
        tell: Called with lines that say what was chosen.

    Raises:
        ModelError: There is no such model, or it is one for each task.
        FormatError: ``answers`` is broken.
    """

    def __init__(
        self, name: str, tasks: TaskSet, answers: Path, settings: PredictSettings, *, sized_by: str,
        texts: Iterable[str] = (), tell: Callable[[str], None] = lambda line: None,
    ) -> None:  # fmt: skip
        model = name
        if settings.engine == "api" and name not in NAMES and not Path(name).is_dir():
            # token numbers of a server mean nothing to another model's tokenizer
            api = settings.api.model_copy(update={"model": name, "logprobs": False})
            settings, model = settings.model_copy(update={"api": api}), sized_by
            tell(f"pictures are sized and prompts are held to their budget as for {sized_by}")
        self._name, self._tasks, self._settings, self._tell = model, tasks, settings, tell
        wordings = (text for task in tasks for text in task.wording)
        self._frontend = load_frontend(model, chain(wordings, texts))
        need_one_model(model, self._frontend.info)
        self._encoder = Encoder(self._frontend.tokenizer, self._frontend.spec, tasks)
        self._file = answers
        self._engine: Engine | None = None
        self._failed: dict[str, str] = {}
        self._made = 0
        self._kept: dict[tuple[str, str], Prediction] = {}
        if answers.exists():
            cut_partial_line(answers)
            self._kept = {(one.task, one.id): one for one in read_predictions(answers)}

    def ask(
        self,
        rows: Iterable[Example | Problem],
        *,
        on_bad_row: OnBadRow = "stop",
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Lesson:
        """Ask rows, each of one of the tasks; those that have an answer to the very same question are not.

        Args:
            rows: The rows.
            on_bad_row: Whether one bad row stops everything before the first is asked, or is left out and named.
            progress: Called with rows done and rows in all.

        Raises:
            DataError: Rows that cannot be used, all counted.
            EngineError: The teacher fails, or answers none of the first rows.
        """
        asked: dict[str, bytes] = {}
        answers: dict[str, Prediction] = {}

        def wanted(row: Example) -> bool:
            asked[row.id] = digest = self._digest(row)
            known = self._kept.get((str(row.task), row.id))
            if known is not None and known.notes.get("asked") == digest.hex():
                answers[row.id] = known
            return row.id not in answers

        found = survey(rows, self._encoder, labelled=False, on_bad_row=on_bad_row, wanted=wanted)
        lesson = Lesson(answers, {}, found.skipped, len(answers))
        if not len(found):
            return lesson
        self._failed = lesson.failed
        engine = self._opened(len(found))
        began = time.perf_counter()
        with (
            self._file.open("a", encoding="utf-8") as file,
            closing(engine.predict(zip(found.rows, found.tokens))) as predictions,
        ):
            for one in (one for many in predictions for one in many):
                answers[one.id] = kept = replace(one, notes={**one.notes, "asked": asked[one.id].hex()})
                file.write(kept.to_json() + "\n")
                file.flush()
                self._made += 1
                progress(len(answers) + len(lesson.failed), len(found) + lesson.earlier)
        lesson.seconds = time.perf_counter() - began
        return lesson

    def close(self) -> None:
        """Give the engine back; safe to call twice."""
        if self._engine is not None:
            self._engine.close()
        self._engine = None

    def _opened(self, rows: int) -> Engine:
        if self._engine is None:
            job = Job(self._name, self._tasks, self._settings, rows=rows, skip=self._skip)
            self._engine = open_engine(job, self._encoder, self._frontend, tell=self._tell)
        return self._engine

    def _skip(self, error: TuyiError) -> None:
        id = error.id if isinstance(error, AnswerError) else error.place.id if isinstance(error, DataError) else None
        self._failed[str(id)] = str(error)
        if len(self._failed) >= _HOPELESS and not self._made:
            first = next(iter(self._failed.values()))
            raise EngineError(f"the teacher answered none of the first {_HOPELESS} rows; the first: {first}")

    def _digest(self, row: Example) -> bytes:
        """A hash of all that an answer depends on."""
        whole = blake2b(self._tasks.of(row).model_dump_json().encode(), digest_size=12)
        for part in row.parts:
            said = part.text if isinstance(part, Text) else part.source
            whole.update(type(part).__name__.encode() + (said if isinstance(said, bytes) else str(said).encode()))
        return whole.digest()


def first_texts(rows: Iterable[Example | Problem], most: int = 2000) -> Iterator[str]:
    """The texts of the first rows of a data set."""
    examples = (row for row in islice(rows, most) if isinstance(row, Example))
    return (part.text for row in examples for part in row.content if isinstance(part, Text))
