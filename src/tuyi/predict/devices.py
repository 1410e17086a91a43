"""All GPUs of a machine: one process each, fed from here, and none of them indispensable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING, Literal

from tuyi.cores import cpu_cores
from tuyi.errors import DataError, EngineError, TuyiError
from tuyi.predict.device_process import DeviceProcess, Event
from tuyi.predict.device_worker import Answer, Crash, Job, Said, Skipped
from tuyi.predict.dispatch import RowPool, serve
from tuyi.predict.engine import SizedRow
from tuyi.predict.prediction import Prediction
from tuyi.task.catalog import TaskSet

if TYPE_CHECKING:
    from tuyi.predict.settings import PredictSettings

__all__ = ["DevicesEngine"]

_WINDOW = 512  # rows read ahead and sorted together, for each device
_SHOWN = 5  # rows that a message names
_PATIENCE = 10.0  # seconds that idle workers have to put away their things


class DevicesEngine:
    """Labels rows in one process per device, each with the model.

    A worker that dies, by a signal, for want of memory or by a bug, costs nothing but its speed: the rows that it had
    go to the others.

    Args:
        model: A model folder, hub id or built-in name.
        tasks: The tasks to ask.
        settings: Of the whole run; picture workers and processor cores are shared out among the devices.
        devices: Torch devices such as ``cuda:0``, ``cuda:1``; one that is named twice gets two processes.
        tell: Called with lines that say what was chosen, and with one for each worker that is lost.
        skip: Called with what is wrong with a row that turns out to be damaged; such a row stops the run where not
            given.

    Raises:
        TuyiError: The model cannot be loaded; or every worker died while it was loading.
    """

    def __init__(
        self,
        model: str,
        tasks: TaskSet,
        settings: PredictSettings,
        devices: Sequence[str],
        tell: Callable[[str], None] = lambda line: None,
        skip: Callable[[DataError], None] | None = None,
    ) -> None:
        assert devices
        self._tell, self._skip = tell, skip
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._alive: list[DeviceProcess] = []
        self._deaths: list[str] = []
        self._suspects: Counter[str] = Counter()
        self._count = len(devices)
        threads = max(1, cpu_cores() // len(devices))
        workers = max(1, settings.workers // len(devices))
        done = False
        try:
            for device in devices:
                own = settings.model_copy(update={"device": device, "workers": workers})
                self._alive.append(DeviceProcess(Job(model, tasks, own, threads, skip is not None), self._events))
            self._load()
            done = True
        finally:
            if not done:
                self._end(0.0)

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the workers that live."""
        return tuple(worker.pid for worker in self._alive)

    def predict(self, rows: Iterable[SizedRow]) -> Generator[list[Prediction], None, None]:
        """Predictions as each worker makes them, each row's exactly once.

        The workers stay for the next call, unless the iterator is closed early or fails: then they are ended at once.

        Raises:
            TuyiError: What a worker met in a row, as it met it.
            EngineError: All workers died, or a row was in hand at two deaths; names exit codes and rows.
        """
        if not self._alive:
            raise EngineError("the workers of this engine have ended; make a new engine")
        done = False
        try:
            self._suspects.clear()
            pool = RowPool(rows, _WINDOW * len(self._alive))
            self._serve_all(pool)
            while pool or any(worker.tokens for worker in self._alive):
                if predictions := self._next(pool):
                    yield predictions
            done = True
        finally:
            if not done:
                self._end(0.0)

    def close(self) -> None:
        """End the workers; safe to call twice."""
        self._end(_PATIENCE)

    def _end(self, patience: float) -> None:
        for worker in self._alive:
            worker.hang_up()
        for worker in self._alive:
            worker.end(patience)
        self._alive.clear()

    def _load(self) -> None:
        """Wait until every worker has the model, or is gone."""
        loading = set(self._alive)
        nothing = RowPool((), 1)
        while loading:
            worker, answer = self._events.get()
            if answer == "ready":
                worker.is_ready()
            if answer in ("ready", "ended"):
                loading.discard(worker)
            self._heed(worker, answer, nothing)

    def _next(self, pool: RowPool) -> list[Prediction]:
        """Wait for a worker to say something, and see to it; predictions, if it was those."""
        worker, answer = self._events.get()
        self._heed(worker, answer, pool)
        self._serve_all(pool)
        return answer if isinstance(answer, list) else []

    def _heed(self, worker: DeviceProcess, answer: Answer | Literal["ended"], pool: RowPool) -> None:
        if isinstance(answer, list):
            worker.answered(prediction.id for prediction in answer)
        elif answer == "room":
            worker.asked += 1
        elif answer == "ended":
            self._bury(worker, pool)
        elif isinstance(answer, Skipped):
            assert self._skip is not None
            assert answer.error.place.id is not None
            worker.answered([answer.error.place.id])
            self._skip(answer.error)
        elif isinstance(answer, Said):
            if worker is self._alive[0]:  # the others say the same
                self._tell(answer.line)
        elif isinstance(answer, Crash):
            worker.crash = answer.text
        elif isinstance(answer, TuyiError):
            raise answer

    def _serve_all(self, pool: RowPool) -> None:
        for worker in self._alive:
            serve(worker, self._alive, pool)

    def _bury(self, worker: DeviceProcess, pool: RowPool) -> None:
        """Give the rows of a worker that is gone to the others.

        Raises:
            EngineError: There are no others, or some of the rows were in hand at an earlier death too.
        """
        self._alive.remove(worker)
        rows = worker.handed
        death = f"the worker on {worker.device} {worker.how_it_ended()}"
        self._deaths.append(death)
        self._suspects.update(row.id for row, _ in rows)
        if twice := [row.id for row, _ in rows if self._suspects[row.id] > 1]:
            raise EngineError(
                f"{_listed(twice)} in hand when two workers died ({'; '.join(self._deaths)}); "
                "look at these rows and their pictures, or leave them out"
            )
        if not self._alive:
            in_hand = f"; {_listed([row.id for row, _ in rows])} in hand at the end" if rows else ""
            raise EngineError(f"no worker is left: {'; '.join(self._deaths)}{in_hand}")
        pool.put_back(rows)
        what = f"; its {len(rows)} unfinished rows go to the others" if rows else ""
        self._tell(f"{death}{what}; {len(self._alive)} of {self._count} workers are left")


def _listed(ids: Sequence[str]) -> str:
    """Some rows for a message: the first few by id."""
    shown = ", ".join(repr(id) for id in ids[:_SHOWN])
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return f"row {shown} was" if len(ids) == 1 else f"rows {shown}{more} were"
