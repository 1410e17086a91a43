"""Many machines: rows through Ray Data, one model per GPU wherever the cluster has them."""

from __future__ import annotations

import logging
import pickle
import platform
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from tuyi.errors import DataError, EngineError, MediaError, TuyiError
from tuyi.extras import need
from tuyi.predict.dispatch import RowPool
from tuyi.predict.engine import SizedRow
from tuyi.predict.prediction import Prediction
from tuyi.task.catalog import TaskSet

if TYPE_CHECKING:
    from tuyi.predict.settings import PredictSettings

__all__ = ["RayEngine"]

_CHUNK_TOKENS = 8 * 32768  # each chunk starts its engine anew, so it is worth some seconds of a GPU
_LEAST_TOKENS = 16384
_WINDOW = 1024  # rows read ahead and sorted together, for each model
_IN_FLIGHT = 2  # chunks that an actor has, the one under way included

Answer: TypeAlias = tuple[list[Prediction], list[DataError]] | TuyiError
"""What became of a chunk: predictions and rows left out, or why the run must stop."""


class RayEngine:
    """Labels rows on a Ray cluster, in one actor per GPU, or per machine where there are none.

    tuyi, the model and the pictures have to be found under the same names on every machine. An actor or a machine
    that is lost is made up for by Ray, which runs its chunks again; rows are checked in on their way back.

    Args:
        model: A model folder, hub id or built-in name.
        tasks: The tasks to ask.
        settings: Of each actor; its device is Ray's to choose.
        address: Of the cluster, such as ``10.0.0.1:6379``; without one the cluster that this process is connected
            to or this machine belongs to, else a new one of this machine alone.
        tell: Called with a line that says what the cluster has.
        skip: Called with what is wrong with a row that turns out to be damaged; such a row stops the run where not
            given.

    Raises:
        ConfigError: Ray is not installed.
        EngineError: The cluster cannot be reached, or has neither GPUs nor CPUs.
    """

    def __init__(
        self,
        model: str,
        tasks: TaskSet,
        settings: PredictSettings,
        address: str | None = None,
        tell: Callable[[str], None] = lambda line: None,
        skip: Callable[[DataError], None] | None = None,
    ) -> None:
        self._skip = skip
        self._own = _connect(address)
        self._actors, self._cpus, self._gpus, share = _places()
        own = settings.model_copy(
            update={
                "device": "cuda" if self._gpus else "cpu",
                "workers": min(settings.workers, share),
            }
        )
        self._arguments = (model, tasks, own, share, skip is not None)
        where = "GPU" if self._gpus else "machine"
        tell(f"Ray: {self._actors} models, one per {where}, {share} processor cores each")

    def predict(self, rows: Iterable[SizedRow]) -> Generator[list[Prediction], None, None]:
        """Predictions chunk by chunk as actors make them, each row's exactly once.

        All rows are laid into Ray's object store first, which moves to disk what does not fit.

        Raises:
            TuyiError: What an actor met in a row; a picture that cannot be opened also names the machine.
            EngineError: Ray gave up, lost a row, or answered one twice and differently.
        """
        from ray.data.exceptions import SystemException
        from ray.exceptions import RayError

        ledger = _Ledger()
        refs = list(_chunks(rows, self._actors, ledger))
        if not refs:
            return
        try:
            for block in self._dataset(refs).iter_batches(batch_size=1, prefetch_batches=1, batch_format="numpy"):
                for data in block["answer"]:
                    answer: Answer = pickle.loads(data)
                    if isinstance(answer, TuyiError):
                        raise answer
                    predictions, damaged = answer
                    for error in ledger.check_in_skipped(damaged):
                        assert self._skip is not None
                        self._skip(error)
                    if fresh := ledger.check_in(predictions):
                        yield fresh
        except (RayError, SystemException) as error:
            raise EngineError(f"Ray gave up: {_last_line(error)}") from error
        ledger.close()

    def close(self) -> None:
        """Leave the cluster, if this engine joined it; safe to call twice."""
        import ray

        if self._own:
            ray.shutdown()
            self._own = False

    def _dataset(self, refs: list[Any]) -> Any:
        import ray.data

        pool = ray.data.ActorPoolStrategy(
            min_size=1, max_size=self._actors, initial_size=self._actors, max_tasks_in_flight_per_actor=_IN_FLIGHT
        )
        return ray.data.from_arrow_refs(refs).map_batches(
            _Labeller,
            fn_constructor_args=self._arguments,
            batch_size=1,
            batch_format="numpy",
            compute=pool,
            num_cpus=self._cpus,
            num_gpus=self._gpus,
        )


class _Labeller:
    """The actor: the model, loaded once."""

    def __init__(self, model: str, tasks: TaskSet, settings: PredictSettings, threads: int, skips: bool) -> None:
        import torch

        from tuyi.predict.loading import Job, open_local

        torch.set_num_threads(threads)
        self._damaged: list[DataError] = []
        self._failure: TuyiError | None = None
        try:
            self._engine = open_local(Job(model, tasks, settings, rows=0, skip=self._take_down if skips else None))
        except TuyiError as error:  # handed back in place of predictions: Ray would make text of it
            self._failure = error

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        """Answer one chunk."""
        return {"answer": [pickle.dumps(self._label(pickle.loads(data))) for data in batch["rows"]]}

    def _label(self, rows: list[SizedRow]) -> Answer:
        if self._failure is not None:
            return self._failure
        self._damaged.clear()
        try:
            return [prediction for many in self._engine.predict(rows) for prediction in many], [*self._damaged]
        except TuyiError as error:
            return _here(error)

    def _take_down(self, error: TuyiError) -> None:
        assert isinstance(error, DataError), "an engine of this process skips damaged rows alone"
        self._damaged.append(_here(error))


Error = TypeVar("Error", bound=TuyiError)


def _here(error: Error) -> Error:
    """The same error; one about a picture also says which machine could not open it."""
    if isinstance(error, MediaError):
        error.message += f" (on machine {platform.node()}; pictures must be readable there under the same path)"
    return error


class _Ledger:
    """Which rows went out and which came back."""

    def __init__(self) -> None:
        self._out: set[str] = set()
        self._back: dict[str, int] = {}

    def check_out(self, rows: Iterable[SizedRow]) -> None:
        self._out.update(row.id for row, _ in rows)

    def check_in(self, predictions: Iterable[Prediction]) -> list[Prediction]:
        """Those that came for the first time.

        Raises:
            EngineError: A row was answered twice, and not the same.
        """
        fresh = []
        for prediction in predictions:
            digest = hash(prediction.to_json())
            if prediction.id in self._out:
                self._out.remove(prediction.id)
                self._back[prediction.id] = digest
                fresh.append(prediction)
            elif self._back.get(prediction.id) != digest:
                raise EngineError(f"row {prediction.id!r} was answered twice and differently, or never asked")
        return fresh

    def check_in_skipped(self, errors: Iterable[DataError]) -> list[DataError]:
        """Those that came for the first time."""
        fresh = [error for error in errors if error.place.id in self._out]
        self._out.difference_update(str(error.place.id) for error in fresh)
        return fresh

    def close(self) -> None:
        """Look for rows that neither came back nor were left out.

        Raises:
            EngineError: Rows did not come back.
        """
        if self._out:
            raise EngineError(
                f"Ray ended without an answer to {len(self._out)} rows, the first is {min(self._out)!r}; "
                "start the same command again for these"
            )


def _connect(address: str | None) -> bool:
    """Join a cluster; whether that had to be done."""
    need("ray.data", "--engine ray needs", extra="ray")
    import ray
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    if ray.is_initialized():
        return False
    try:
        ray.init(address=address, logging_level=logging.WARNING)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = f"the Ray cluster at {address}" if address else "a Ray cluster of this machine"
        raise EngineError(f"{where} cannot be reached: {_last_line(error)}") from error
    return True


def _places() -> tuple[int, int, int | None, int]:
    """How many models the cluster takes, the CPUs and GPUs that each asks of Ray, and its share of processor cores."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if gpus := [node for node in nodes if node.get("GPU", 0) >= 1]:
        share = max(1, min(int(node.get("CPU", 1) // node["GPU"]) for node in gpus))
        return sum(int(node["GPU"]) for node in gpus), 1, 1, share
    cores = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    if not cores:
        raise EngineError("the Ray cluster has neither GPUs nor CPUs to give")
    return sum(many // min(cores) for many in cores), min(cores), None, min(cores)


def _chunks(rows: Iterable[SizedRow], actors: int, ledger: _Ledger) -> Iterator[Any]:
    """References to chunks of about equal size, which shrink towards the end so that all actors end together."""
    import pyarrow
    import ray

    pool = RowPool(rows, _WINDOW * actors)
    while pool:
        size = _CHUNK_TOKENS
        if pool.is_last:
            size = min(size, max(_LEAST_TOKENS, pool.tokens // (2 * actors)))
        chunk = pool.take(size)
        ledger.check_out(chunk)
        data = pickle.dumps(chunk, protocol=pickle.HIGHEST_PROTOCOL)
        yield ray.put(pyarrow.table({"rows": pyarrow.array([data], pyarrow.large_binary())}))


def _last_line(error: BaseException) -> str:
    return next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__).strip()
