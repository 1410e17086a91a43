"""Rows through a real Ray cluster of three machines (raylets on this one): equal to the local engine, whatever dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tuyi.data.example import Example, Image, Text
from tuyi.errors import EngineError, MediaError, ModelError, Place
from tuyi.predict import cluster
from tuyi.predict.cluster import RayEngine, _Ledger
from tuyi.predict.engine import SizedRow
from tuyi.predict.prediction import Prediction
from tuyi.predict.settings import PredictSettings
from tuyi.task.catalog import TaskSet

SETTINGS = PredictSettings(precision="float32", workers=2, pack_tokens=700)
COUNT = 48


def prediction(id: str, label: str = "a") -> Prediction:
    return Prediction(id=id, task="t", label=label, logprobs={}, probabilities={}, notes={})


def test_the_ledger_drops_equal_doubles_and_nothing_else():
    ledger = _Ledger()
    ledger.check_out([(Example("x", ()), 1), (Example("y", ()), 1), (Example("z", ()), 1)])
    assert [one.id for one in ledger.check_in([prediction("x"), prediction("y")])] == ["x", "y"]
    assert ledger.check_in([prediction("x")]) == []
    with pytest.raises(EngineError, match="row 'y' was answered twice and differently"):
        ledger.check_in([prediction("y", "b")])
    with pytest.raises(EngineError, match="row 'w' was answered twice and differently, or never asked"):
        ledger.check_in([prediction("w")])
    with pytest.raises(EngineError, match="without an answer to 1 rows, the first is 'z'"):
        ledger.close()
    damaged = MediaError("broken", Place(id="z"))
    assert ledger.check_in_skipped([damaged]) == [damaged]
    assert ledger.check_in_skipped([damaged]) == []
    ledger.close()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A cluster of three machines with one core each."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    each = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    made = Cluster(initialize_head=True, head_node_args={**each, "include_dashboard": False})
    for _ in range(2):
        made.add_node(**each)
    yield made
    made.shutdown()


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_CHUNK_TOKENS", 200)
    monkeypatch.setattr(cluster, "_LEAST_TOKENS", 200)


@pytest.fixture(scope="module")
def sized(picture: Callable[..., Image], tmp_path_factory: pytest.TempPathFactory) -> list[SizedRow]:
    """Rows without and with a picture, as bytes and as a file."""
    folder, rows = tmp_path_factory.mktemp("pictures"), []
    for number in range(COUNT):
        image = picture(40 + 3 * number, 60, seed=number)
        if number % 2:
            assert isinstance(image.source, bytes)
            file = folder / f"{number}.png"
            file.write_bytes(image.source)
            image = Image(file, file.name)
        parts = (Text("看" * (1 + number % 5)), image, Text("什么"))
        rows.append((Example(f"r{number}", parts[: 1 + number % 3], task=["colour", "shape"][number % 2]), 60))
    return rows


@pytest.fixture(scope="module")
def expected(sized: list[SizedRow], tasks: TaskSet) -> dict[str, Prediction]:
    from tuyi.predict.loading import Job, open_local

    local = open_local(Job("builtin:tiny", tasks, SETTINGS.model_copy(update={"device": "cpu"}), rows=0))
    return {one.id: one for predictions in local.predict(sized) for one in predictions}


def actor_pids() -> list[int]:
    """Processes of this machine that have a model for Ray."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and b"MapWorker(MapBatches(_Labeller" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def labelled(engine: RayEngine, rows: list[SizedRow], after_first: Callable[[], None]) -> dict[str, Prediction]:
    found: dict[str, Prediction] = {}
    for predictions in engine.predict(iter(rows)):
        if not found:
            after_first()
        assert not found.keys() & {one.id for one in predictions}, "each id once"
        found |= {one.id: one for one in predictions}
    return found


def kill_an_actor(nodes: Any) -> None:
    pids = actor_pids()
    assert len(pids) == 3
    os.kill(pids[0], signal.SIGKILL)


def lose_a_machine(nodes: Any) -> None:
    nodes.remove_node(sorted(nodes.worker_nodes, key=str)[0], allow_graceful=False)


@pytest.mark.slow
@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("accident", [kill_an_actor, lose_a_machine])
def test_predictions_are_the_local_engines(
    nodes: Any,
    accident: Callable[[Any], None],
    sized: list[SizedRow],
    expected: dict[str, Prediction],
    tasks: TaskSet,
):
    told: list[str] = []
    engine = RayEngine("builtin:tiny", tasks, SETTINGS, nodes.address, told.append)
    try:
        assert told == ["Ray: 3 models, one per machine, 1 processor cores each"]
        found = labelled(engine, sized, lambda: accident(nodes))
    finally:
        engine.close()
        engine.close()
    assert found.keys() == expected.keys()
    for id, one in expected.items():
        assert (found[id].task, found[id].label, found[id].notes) == (one.task, one.label, one.notes)
        assert dict(found[id].logprobs) == pytest.approx(dict(one.logprobs), abs=1e-5)


@pytest.mark.slow
def test_errors_arrive_as_they_are(nodes: Any, tasks: TaskSet, tmp_path: Path):
    """A picture that a machine cannot open, and a model that none has."""
    engine = RayEngine("builtin:tiny", tasks, SETTINGS, nodes.address)
    try:
        lost = Example("r1", (Text("看"), Image(tmp_path / "gone.png", "gone.png")), task="colour")
        with pytest.raises(
            MediaError,
            match=r"id r1: .*gone\.png.*\(on machine .+; pictures must be readable there under the same path\)",
        ):
            list(engine.predict([(lost, 100)]))
        assert list(engine.predict([])) == []
    finally:
        engine.close()
    engine = RayEngine(str(tmp_path / "nowhere"), tasks, SETTINGS, nodes.address)
    try:
        with pytest.raises(ModelError, match="nowhere does not exist"):
            list(engine.predict([(Example("x", (Text("y"),), task="colour"), 10)]))
    finally:
        engine.close()
