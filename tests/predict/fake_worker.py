"""The process of one device with an engine that needs no model: quick to start, and it does what a row tells it to."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from itertools import islice

from tuyi.errors import MediaError, ModelError, Place
from tuyi.predict import device_worker
from tuyi.predict.engine import SizedRow
from tuyi.predict.prediction import Prediction

WINDOW = 6


class FakeEngine:
    """Reads windows of rows and answers them two by two with the process id, as the local engine would."""

    def __init__(self, skips: device_worker._Socket | None) -> None:
        self._skips = skips

    def predict(self, rows: Iterable[SizedRow]) -> Iterator[list[Prediction]]:
        rows = iter(rows)
        while window := list(islice(rows, WINDOW)):
            for begin in range(0, len(window), 2):
                try:
                    yield [self._label(row.id, row.text) for row, _ in window[begin : begin + 2]]
                except MediaError as error:
                    if self._skips is None:
                        raise
                    self._skips.send(device_worker.Skipped(error))
                    yield [self._label(row.id, "") for row, _ in window[begin : begin + 2] if row.id != error.place.id]

    def _label(self, id: str, text: str) -> Prediction:
        match text:
            case "poison":
                os.kill(os.getpid(), signal.SIGKILL)
            case "bug":
                raise ZeroDivisionError("a bug")
            case "bad picture":
                raise MediaError("this is no picture", Place(row=7, id=id))
        time.sleep(0.01)
        return Prediction(id=id, task="t", label=str(os.getpid()), logprobs={}, probabilities={}, notes={})

    def close(self) -> None:
        pass


def open_fake(job: device_worker.Job, socket: device_worker._Socket) -> FakeEngine:
    socket.send(device_worker.Said("loading"))
    if job.model == "broken":
        raise ModelError("this model is broken")
    if job.model == "half broken" and job.settings.device == "cpu:1":
        os._exit(3)
    if job.model == "slow":
        time.sleep(60)
    if job.model == "with a helper" and os.fork() == 0:  # it holds the worker's end of the socket too
        time.sleep(60)
        os._exit(0)
    return FakeEngine(socket if job.skips else None)


def main(fd: int) -> None:
    device_worker._open = open_fake  # type: ignore[assignment]
    device_worker.main(fd)
