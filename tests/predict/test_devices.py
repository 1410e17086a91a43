"""One process per device: every row once whatever dies, errors as they are, nothing left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tuyi import program
from tuyi.data.example import Example, Image, Text
from tuyi.errors import DataError, EngineError, MediaError, ModelError
from tuyi.predict import dispatch
from tuyi.predict.devices import DevicesEngine
from tuyi.predict.engine import SizedRow
from tuyi.predict.prediction import Prediction
from tuyi.predict.settings import PredictSettings
from tuyi.task.catalog import TaskSet

SETTINGS = PredictSettings(precision="float32", workers=2, pack_tokens=700)
FAKE = "import sys; sys.path[:] = {path!r}; from fake_worker import main; main({fd})"

MakeEngine = Callable[..., DevicesEngine]


def row(id: str, text: str = "", size: int = 100) -> SizedRow:
    return Example(id, (Text(text),)), size


def many(count: int, **texts: str) -> list[SizedRow]:
    return [row(f"r{number}", texts.get(f"r{number}", "")) for number in range(count)]


def is_gone(pid: int, seconds: float = 10) -> bool:
    """Whether a process ends, and is reaped, in time."""
    until = time.monotonic() + seconds
    while Path(f"/proc/{pid}").exists():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def others(pid: int, group: bool = False) -> list[int]:
    """Living processes whose parent, or whose process group, is ``pid``."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            state, parent, leader, *_ = stat.read_text().rpartition(")")[2].split()
            if state != "Z" and int(leader if group else parent) == pid:
                found.append(int(stat.parent.name))
    return found


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, tasks: TaskSet) -> Iterator[MakeEngine]:
    """Engines whose workers have no model; small chunks, so that there are many."""
    monkeypatch.setattr(program, "_PROGRAM", FAKE)
    monkeypatch.setattr(dispatch, "CHUNK_TOKENS", 500)
    made: list[DevicesEngine] = []

    def engine(count: int = 2, model: str = "fake", **options: Any) -> DevicesEngine:
        made.append(DevicesEngine(model, tasks, SETTINGS, [f"cpu:{number}" for number in range(count)], **options))
        return made[-1]

    yield engine
    for one in made:
        one.close()
        one.close()


def labels(predictions: Iterator[list[Prediction]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for prediction in (one for many in predictions for one in many):
        assert prediction.id not in found, "each id once"
        found[prediction.id] = prediction.label
    return found


def test_every_row_once_and_every_worker_at_work(make: MakeEngine):
    engine = make(3)
    pids = engine.pids
    for count in (1, 200, 0, 7):
        found = labels(engine.predict(iter(many(count))))
        assert found.keys() == {f"r{number}" for number in range(count)}
        if count == 200:
            assert set(found.values()) == {str(pid) for pid in pids}
    assert engine.pids == pids, "the workers stay"
    engine.close()
    assert engine.pids == ()
    assert all(is_gone(pid) for pid in pids)
    with pytest.raises(EngineError, match="the workers of this engine have ended"):
        next(engine.predict(many(1)))


def test_rows_are_read_as_they_are_needed(make: MakeEngine):
    engine, read = make(2), []

    def rows() -> Iterator[SizedRow]:
        for number in range(5000):
            read.append(number)
            yield row(f"r{number}")

    predictions = engine.predict(rows())
    next(predictions)
    assert len(read) < 2500
    pids = engine.pids
    predictions.close()  # type: ignore[attr-defined]
    assert all(is_gone(pid, 2) for pid in pids), "closing early waits for nothing"


def test_a_killed_worker_loses_and_doubles_nothing(make: MakeEngine):
    told: list[str] = []
    engine = make(3, tell=told.append)
    victim, *others = engine.pids
    found: dict[str, str] = {}
    for number, predictions in enumerate(engine.predict(many(150))):
        if number == 10:
            os.kill(victim, signal.SIGKILL)
        found |= labels(iter([predictions]))
    assert found.keys() == {f"r{number}" for number in range(150)}
    assert engine.pids == tuple(others)
    assert len(told) == 2
    assert told[0] == "loading", "what all say is said once"
    assert told[1].startswith(
        "the worker on cpu:0 was killed (exit code -9, SIGKILL: what Linux does to a process when"
    )
    assert told[1].endswith("unfinished rows go to the others; 2 of 3 workers are left")
    assert len(labels(engine.predict(many(20)))) == 20, "the rest go on"


def test_helpers_end_with_their_worker_and_do_not_hide_its_end(make: MakeEngine):
    engine = make(2, "with a helper")
    victim, other = engine.pids
    os.kill(victim, signal.SIGKILL)
    assert len(labels(engine.predict(many(40)))) == 40
    assert engine.pids == (other,)
    assert len(others(victim, group=True)) == 0
    assert len(others(other, group=True)) == 2
    engine.close()
    deadline = time.monotonic() + 10
    while others(other, group=True):  # the signal is sent; the kernel needs a moment to end them
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_row_that_kills_two_workers_is_named(make: MakeEngine):
    engine = make(3)
    with pytest.raises(EngineError, match=r"in hand when two workers died \(the worker on cpu:\d was killed") as caught:
        labels(engine.predict(many(60, r30="poison")))
    assert "'r30'" in str(caught.value)
    assert engine.pids == ()


def test_when_all_are_dead_the_exit_code_and_the_rows_are_said(make: MakeEngine):
    with pytest.raises(
        EngineError,
        match=r"no worker is left: the worker on cpu:0 ended with exit code 1: ZeroDivisionError: a bug; "
        r"rows 'r0', 'r1', 'r2', 'r3', 'r4' and \d+ more were in hand at the end",
    ):
        labels(make(1).predict(many(60, r0="bug")))


def test_an_error_in_a_row_arrives_as_it_is(make: MakeEngine):
    engine = make(2)
    pids = engine.pids
    with pytest.raises(MediaError, match=r"^row 7, id r9: this is no picture$") as caught:
        labels(engine.predict(many(60, r9="bad picture")))
    assert caught.value.place.row == 7
    assert all(is_gone(pid) for pid in pids)


def test_a_damaged_row_can_be_left_out(make: MakeEngine):
    skipped: list[DataError] = []
    engine = make(2, skip=skipped.append)
    assert len(labels(engine.predict(many(60, r9="bad picture")))) == 59
    assert [str(error) for error in skipped] == ["row 7, id r9: this is no picture"]
    assert len(engine.pids) == 2


def test_an_error_of_the_rows_themselves_ends_the_workers(make: MakeEngine):
    engine = make(2)
    pids = engine.pids

    def rows() -> Iterator[SizedRow]:
        yield row("a")
        raise KeyError("reader")

    with pytest.raises(KeyError, match="reader"):
        labels(engine.predict(rows()))
    assert all(is_gone(pid) for pid in pids)


def test_two_rows_of_one_id_are_refused(make: MakeEngine):
    with pytest.raises(DataError, match="id r0: another row has the same id"):
        labels(make(1).predict([row("r0"), row("r0")]))


def test_failures_while_loading(make: MakeEngine):
    told: list[str] = []
    with pytest.raises(ModelError, match="this model is broken"):
        make(2, "broken")
    engine = make(2, "half broken", tell=told.append)
    assert sorted(told) == ["loading", "the worker on cpu:1 ended with exit code 3; 1 of 2 workers are left"]
    assert len(labels(engine.predict(many(20)))) == 20


# No `__main__` guard, as in most people's scripts.
SCRIPT = """
import sys
sys.path[:] = {path!r}
from tuyi.data.example import Example
from tuyi import program
from tuyi.predict.devices import DevicesEngine
from tuyi.predict.settings import PredictSettings
from tuyi.task.catalog import load_tasks

program._PROGRAM = {program!r}
engine = DevicesEngine({model!r}, load_tasks("www2025"), PredictSettings(), ["cpu:0", "cpu:1"])
print(*engine.pids, flush=True)
for predictions in engine.predict((Example(str(number), ()), 100) for number in range(10**9)):
    pass
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_engine(number: signal.Signals, tmp_path: Path):
    file = tmp_path / "script.py"
    file.write_text(SCRIPT.format(path=sys.path, program=FAKE, model="fake"))
    with subprocess.Popen(
        [sys.executable, file], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as script:
        assert script.stdout is not None
        pids = [int(pid) for pid in script.stdout.readline().split()]
        assert len(pids) == 2
        script.send_signal(number)
        _, errors = script.communicate(timeout=20)
    assert script.returncode in (1, -number)
    assert all(is_gone(pid) for pid in pids)
    assert errors.count("Traceback") == (number == signal.SIGINT), "only the script's own KeyboardInterrupt"


@pytest.mark.slow
def test_workers_that_are_loading_end_with_their_engine(tmp_path: Path):
    file = tmp_path / "script.py"
    file.write_text(SCRIPT.format(path=sys.path, program=FAKE, model="slow"))
    with subprocess.Popen([sys.executable, file]) as script:
        until = time.monotonic() + 60
        while len(pids := others(script.pid)) < 2 and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(2)
        script.kill()
    assert len(pids) == 2
    assert all(is_gone(pid, 20) for pid in pids)


def pictures_and_texts(picture: Callable[..., Image], count: int) -> list[SizedRow]:
    rows = []
    for number in range(count):
        parts = (Text("看" * (1 + number % 5)), picture(40 + 3 * number, 60, seed=number), Text("什么"))
        rows.append((Example(f"r{number}", parts[: 1 + number % 3], task=["colour", "shape"][number % 2]), 60))
    return rows


@pytest.mark.slow
def test_predictions_are_the_local_engines(picture: Callable[..., Image], tasks: TaskSet):
    """With the tiny model, a worker killed on the way."""
    import torch

    from tuyi.predict.loading import Job, open_local

    rows = pictures_and_texts(picture, 48)
    engine = DevicesEngine("builtin:tiny", tasks, SETTINGS, ["cpu", "cpu"])
    found: dict[str, Prediction] = {}
    for predictions in engine.predict(iter(rows)):
        if not found:
            os.kill(engine.pids[0], signal.SIGKILL)
        assert not found.keys() & {one.id for one in predictions}
        found |= {one.id: one for one in predictions}
    assert len(engine.pids) == 1
    engine.close()
    torch.set_num_threads(1)
    local = open_local(Job("builtin:tiny", tasks, SETTINGS.model_copy(update={"device": "cpu"}), rows=0))
    expected = {one.id: one for predictions in local.predict(rows) for one in predictions}
    assert found.keys() == expected.keys()
    for id, one in expected.items():
        assert (found[id].task, found[id].label, found[id].notes) == (one.task, one.label, one.notes)
        assert dict(found[id].logprobs) == pytest.approx(dict(one.logprobs), abs=1e-5)
