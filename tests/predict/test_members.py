"""A model for each task behind one engine: each row gets what its own model says, calibrated as that one is."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import tuyi
from tuyi.data.example import Example
from tuyi.encode.encoder import Encoder
from tuyi.errors import ModelError
from tuyi.evaluate.calibration import calibrate, keep_temperature, softmax
from tuyi.model import fast
from tuyi.model.folder import FolderInfo, read_info, write_info
from tuyi.model.load import load_frontend, load_model, peek
from tuyi.model.weights import weigh
from tuyi.predict import loading, room
from tuyi.predict.engine import Engine, SizedRow
from tuyi.predict.loading import Job, open_local
from tuyi.predict.local import LocalEngine
from tuyi.predict.members import MembersEngine
from tuyi.predict.opening import open_engine
from tuyi.predict.prediction import Prediction
from tuyi.predict.settings import PredictSettings
from tuyi.task.catalog import TaskSet
from tuyi.vision import pool

NAMES = ("colour", "shape")
SETTINGS = PredictSettings(device="cpu", workers=1, pack_tokens=500)


def alone(tasks: TaskSet, name: str) -> TaskSet:
    return TaskSet(name=name, tasks=(tasks[name],))


@pytest.fixture(scope="module")
def both(tasks: TaskSet) -> TaskSet:
    return TaskSet(name="small", tasks=tuple(tasks[name] for name in NAMES))


@pytest.fixture(scope="module")
def folder(twins: Callable[[str], Any], both: TaskSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models that differ; one has a temperature."""
    out, twin = tmp_path_factory.mktemp("members") / "model", twins("qwen2_vl")
    for number, name in enumerate(NAMES):
        hf = load_model(twin.model.frontend, device="cpu", seed=number).hf
        with torch.no_grad():
            for weight in hf.parameters():
                weight.mul_(1.5 if weight.ndim > 1 else 1)
        hf.save_pretrained(out / name)
        twin.model.frontend.processor.save_pretrained(out / name)
        calibration = {"shape": {"temperature": 2.0}} if name == "shape" else {}
        write_info(out / name, FolderInfo(tasks=alone(both, name), base_model="b", calibration=calibration))
    write_info(out, FolderInfo(tasks=both, base_model="b", members={name: name for name in NAMES}))
    return out


@pytest.fixture(scope="module")
def sized(
    folder: Path, both: TaskSet, mixed_rows: Callable[[int], list[Example]], twins: Callable[[str], Any]
) -> list[SizedRow]:
    return [(row, twins("qwen2_vl").encoder.length(row, labelled=False).tokens) for row in mixed_rows(26)]


def predicted(engine: Engine, rows: list[SizedRow]) -> dict[str, Prediction]:
    many = [one for some in engine.predict(rows) for one in some]
    found = {one.id: one for one in many}
    assert len(found) == len(many), "each id once"
    return found


@pytest.fixture(scope="module")
def expected(folder: Path, both: TaskSet, sized: list[SizedRow]) -> dict[str, Prediction]:
    """What each model says of its rows, opened by itself."""
    found: dict[str, Prediction] = {}
    for name in NAMES:
        mine = [(row, size) for row, size in sized if row.task == name]
        with closing(open_local(Job(str(folder / name), alone(both, name), SETTINGS, rows=0))) as engine:
            assert isinstance(engine, LocalEngine)
            found |= predicted(engine, mine)
    return found


def assert_same(found: dict[str, Prediction], expected: dict[str, Prediction], near: float) -> None:
    assert found.keys() == expected.keys()
    for key, one in found.items():
        other = expected[key]
        assert (one.task, one.label, one.notes) == (other.task, other.label, other.notes)
        assert dict(one.logprobs) == pytest.approx(dict(other.logprobs), abs=near)
        assert dict(one.probabilities) == pytest.approx(dict(other.probabilities), abs=near)


@pytest.mark.parametrize(("window", "near"), [(1024, 0.0), (5, 1e-4)])
def test_every_row_gets_what_its_own_model_says(
    window: int, near: float, folder: Path, both: TaskSet, sized: list[SizedRow], expected: dict[str, Prediction]
):
    with closing(open_local(Job(str(folder), both, SETTINGS, rows=26, window=window))) as engine:
        assert isinstance(engine, MembersEngine)
        assert_same(predicted(engine, sized), expected, near)
        assert_same(predicted(engine, sized[:3]), {f"r{n}": expected[f"r{n}"] for n in range(3)}, 1e-4)
        assert predicted(engine, []) == {}
    engine.close()


def test_the_models_and_their_temperatures_differ(expected: dict[str, Prediction], sized: list[SizedRow]):
    """Or the test above could not fail."""
    shape = next(one for one in expected.values() if one.task == "shape")
    logs = np.array(list(shape.logprobs.values()))[None]
    at_two, at_one = softmax(logs, 2.0)[0], softmax(logs, 1.0)[0]
    assert list(shape.probabilities.values()) == pytest.approx(list(at_two), abs=1e-6)
    assert abs(at_two - at_one).max() > 0.01
    assert {one.task for one in expected.values()} == set(NAMES)


def test_models_are_asked_window_by_window_and_no_further_than_needed(both: TaskSet):
    asked: list[tuple[str, list[int]]] = []

    def engine(name: str) -> Any:
        def predict(rows: list[SizedRow]) -> Iterator[list[int]]:
            asked.append((name, [size for _, size in rows]))
            yield [size for _, size in rows]

        return SimpleNamespace(predict=predict)

    read: list[int] = []

    def rows() -> Iterator[SizedRow]:
        for number, name in enumerate("ccscssscc"):
            read.append(number)
            yield Example(f"r{number}", (), task="colour" if name == "c" else "shape"), number

    members = MembersEngine({name: engine(name) for name in NAMES}, SimpleNamespace(tasks=both), 3)  # type: ignore[arg-type]
    answers = members.predict(rows())
    assert next(answers) == [0, 1, 3]
    assert read == [0, 1, 2, 3]
    assert [*answers] == [[2, 4, 5], [7, 8], [6]]
    assert asked == [("colour", [0, 1, 3]), ("shape", [2, 4, 5]), ("colour", [7, 8]), ("shape", [6])]


def test_only_the_models_that_are_asked_are_loaded(
    folder: Path, both: TaskSet, sized: list[SizedRow], monkeypatch: pytest.MonkeyPatch
):
    loaded: list[str] = []
    plain = fast.load_model
    monkeypatch.setattr(
        fast,
        "load_model",
        lambda frontend, **more: loaded.append(Path(frontend.name).name) or plain(frontend, **more),
    )
    with closing(open_local(Job(str(folder), alone(both, "shape"), SETTINGS, rows=0))) as engine:
        assert len(predicted(engine, sized[1:2])) == 1
    assert loaded == ["shape"]


def test_an_early_end_stops_the_model_at_work(folder: Path, both: TaskSet, sized: list[SizedRow]):
    with closing(open_local(Job(str(folder), both, SETTINGS.model_copy(update={"pack_tokens": 60}), rows=0))) as engine:
        with closing(engine.predict(sized)) as answers:
            assert next(answers)
        assert len(predicted(engine, sized)) == 26


def test_memory_and_pictures_are_shared_on_a_gpu(folder: Path, both: TaskSet, monkeypatch: pytest.MonkeyPatch):
    """Room for packs is looked for when all weights are there; the processes that read pictures serve all."""
    steps: list[Any] = []
    given: list[dict[str, Any]] = []
    hf, gpu = SimpleNamespace(config=None), torch.device("cuda", 0)

    def load(frontend: Any, **_: Any) -> Any:
        steps.append(f"load {Path(frontend.name).name}")
        return SimpleNamespace(hf=hf, device=gpu, frontend=frontend)

    def picture_pool(*arguments: Any, **options: Any) -> Any:
        steps.append("pool")
        return closing(SimpleNamespace(close=lambda: steps.append("pool closed")))

    monkeypatch.setattr(fast, "load_model", load)
    monkeypatch.setattr(loading, "LocalEngine", lambda *_, **more: given.append(more) or SimpleNamespace())
    monkeypatch.setattr(fast, "tune", lambda hf: [])
    monkeypatch.setattr(pool, "PicturePool", picture_pool)
    monkeypatch.setattr(room, "pack_tokens", lambda *_, **__: steps.append("room") or 4096)
    monkeypatch.setattr(room, "kept_features", lambda *_: 1001)
    settings = PredictSettings(device="cuda:0", compile=False)
    open_local(Job(str(folder), both, settings, rows=0))
    assert steps == ["load colour", "load shape", "pool", "room", "room"]
    assert [one["features"] for one in given] == [500, 500]
    assert [one["pack_tokens"] for one in given] == [4096, 4096]
    assert given[0]["pool"] is given[1]["pool"] is not None


def test_a_start_that_fails_closes_every_engine(folder: Path, both: TaskSet, monkeypatch: pytest.MonkeyPatch):
    closed: list[LocalEngine] = []
    close = LocalEngine.close
    monkeypatch.setattr(LocalEngine, "close", lambda self: closed.append(self) or close(self))
    with pytest.raises(ModelError, match="use bfloat16"):
        open_local(Job(str(folder), both, SETTINGS.model_copy(update={"precision": "fp8"}), rows=0))
    assert len(closed) == 2


# --- the folder -------------------------------------------------------------------------------------------------------


def write_rows(file: Path, rows: list[SizedRow]) -> Path:
    from tuyi.data.write import ExampleWriter

    with ExampleWriter(file, "messages") as writer:
        for row, _ in rows:
            writer.write(row)
    return file


def test_predict_takes_the_folder_for_a_model(
    folder: Path, sized: list[SizedRow], expected: dict[str, Prediction], tmp_path: Path
):
    told: list[str] = []
    data = write_rows(tmp_path / "rows.jsonl", sized)
    done = tuyi.predict(folder, data, tmp_path / "p.jsonl", settings=SETTINGS, tell=told.append)
    assert_same({one.id: one for one in tuyi.read_predictions(done.out)}, expected, 1e-5)
    assert "shape: max_pixels 16384, max_tokens 2048, temperature 2" in told[0]
    assert tuyi.predict(folder, data, tmp_path / "p.jsonl", settings=SETTINGS).resumed == 26


@pytest.mark.slow
def test_several_devices_have_every_model_each(
    folder: Path, sized: list[SizedRow], expected: dict[str, Prediction], tmp_path: Path
):
    data = write_rows(tmp_path / "rows.jsonl", sized)
    settings = SETTINGS.model_copy(update={"device": "cpu,cpu"})
    done = tuyi.predict(folder, data, tmp_path / "p.jsonl", settings=settings)
    assert_same({one.id: one for one in tuyi.read_predictions(done.out)}, expected, 1e-4)


def test_load_answers_questions_of_all_tasks(folder: Path, sized: list[SizedRow], expected: dict[str, Prediction]):
    ours = tuyi.load(folder, settings=SETTINGS)
    try:
        assert [task.name for task in ours.tasks] == list(NAMES)
        found = ours.predict([row for row, _ in sized[:4]])
        assert [one.id for one in found] == ["r0", "r1", "r2", "r3"]
        assert [one.label for one in found] == [expected[one.id].label for one in found]
        with pytest.raises(ModelError, match="there is a model for each task"):
            _ = ours.model
    finally:
        ours.close()


def test_a_kept_temperature_goes_to_the_tasks_own_model(folder: Path, tmp_path: Path):
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    rng = np.random.default_rng(0)
    logprobs = 5 * rng.standard_normal((400, 3))
    gold = np.array([rng.choice(3, p=one) for one in softmax(logprobs, 3.0)])
    found = calibrate(logprobs, softmax(logprobs, 1.0), gold, logprobs.argmax(axis=1))
    assert found.temperature == pytest.approx(3.0, rel=0.2)
    before = (copy / "tuyi.json").read_bytes()
    kept = keep_temperature(copy, {"colour": found})
    assert kept["colour"]["temperature"] == found.temperature
    assert (copy / "tuyi.json").read_bytes() == before
    member, whole = read_info(copy / "colour"), peek(str(copy))
    assert member is not None
    assert whole is not None
    assert member.temperature("colour") == whole.temperature("colour") == found.temperature
    assert whole.temperature("shape") == 2.0


def test_its_size_is_that_of_all_models(folder: Path):
    one, two, both = (weigh(str(folder / name)) for name in ("colour", "shape", "."))
    assert both.parameters == 2 * (one.parameters or 0) > 2_000_000
    assert both.file_bytes == one.file_bytes + two.file_bytes
    assert (both.family, both.folder) == ("qwen2_vl", folder / "colour")


@pytest.mark.parametrize("engine", ["vllm", "api"])
def test_engines_that_run_one_model_name_the_models(engine: Any, folder: Path, both: TaskSet):
    frontend = load_frontend(str(folder))
    encoder = Encoder(frontend.tokenizer, frontend.spec, both)
    job = Job(str(folder), both, PredictSettings(engine=engine), rows=0)
    with pytest.raises(ModelError, match=rf"a single one is needed here: name one of {folder}/colour, {folder}/shape"):
        open_engine(job, encoder, frontend)


def test_a_folder_without_one_of_its_models(folder: Path, tmp_path: Path):
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "shape")
    with pytest.raises(
        ModelError, match=r"names shape as the model of task shape, and .*/shape is none: it has no tuyi"
    ):
        peek(str(copy))
    text = (copy / "tuyi.json").read_text(encoding="utf-8")
    (copy / "tuyi.json").write_text(text.replace('"shape": "shape"', '"shapes": "shape"'), encoding="utf-8")
    with pytest.raises(ModelError, match="members: expected the tasks colour, shape; found colour, shapes"):
        peek(str(copy))
