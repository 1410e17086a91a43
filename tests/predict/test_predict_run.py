"""``tuyi predict``: every id once, killed and started again or not; nothing loads before every row was looked at."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tuyi.data import read
from tuyi.data.example import Image
from tuyi.errors import DataError, FormatError, ModelError, OutputError, TaskError
from tuyi.model.folder import FolderInfo, write_info
from tuyi.predict.prediction import Prediction, read_predictions, read_run, run_file
from tuyi.predict.run import PredictSettings, PredictSummary, predict
from tuyi.task.catalog import TaskSet

SETTINGS = PredictSettings(device="cpu", precision="float32", workers=2, pack_tokens=700)
COUNT = 24


@pytest.fixture(scope="module")
def model(twins: Callable[[str], Any], tasks: TaskSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict") / "model"
    twin = twins("qwen2_vl")
    twin.model.hf.save_pretrained(folder)
    twin.model.frontend.processor.save_pretrained(folder)
    write_info(folder, FolderInfo(tasks=tasks, base_model="b", calibration={"colour": {"temperature": 2.0}}))
    return folder


def data_rows(picture: Callable[..., Image], folder: Path) -> list[dict[str, Any]]:
    """Rows of both tasks: with no, one and two pictures, short and over budget."""
    rows = []
    for number in range(COUNT):
        names = []
        for index in range(number % 3):
            image = picture(40 + 10 * number, 60 + 5 * index, seed=number)
            names.append(f"{number}-{index}.png")
            assert isinstance(image.source, bytes)
            (folder / names[-1]).write_bytes(image.source)
        text = "用户: 看 " + "<image>" * len(names) + " 这是什么" * (number % 5) + "\n客服: 好\n用户: 那呢"
        if number in (7, 8):
            text = "用户: 从前\n" * 300 + text
        rows.append({"id": f"r{number}", "task": ["colour", "shape"][number % 2], "text": text, "images": names})
    return rows


def write_rows(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def data(picture: Callable[..., Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    return write_rows(folder / "rows.jsonl", data_rows(picture, folder))


@pytest.fixture(scope="module")
def unbroken(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[PredictSummary, list[Any]]:
    """One run from beginning to end, and the calls of its progress."""
    calls: list[Any] = []
    out = tmp_path_factory.mktemp("out") / "deeper" / "pred.jsonl"
    summary = predict(
        model, data, out, settings=SETTINGS, progress=lambda done, total: calls.append((done, total)), tell=calls.append
    )
    return summary, calls


def by_id(file: Path) -> dict[str, Prediction]:
    predictions = list(read_predictions(file))
    found = {one.id: one for one in predictions}
    assert len(found) == len(predictions), "each id once"
    return found


def assert_same(found: dict[str, Prediction], expected: dict[str, Prediction]) -> None:
    assert found.keys() == expected.keys()
    for key, one in found.items():
        other = expected[key]
        assert (one.task, one.label, one.notes) == (other.task, other.label, other.notes)
        assert dict(one.logprobs) == pytest.approx(dict(other.logprobs), abs=1e-4)
        assert dict(one.probabilities) == pytest.approx(dict(other.probabilities), abs=1e-5)


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_model(*args: Any, **options: Any) -> None:
        pytest.fail("the weights were loaded")

    monkeypatch.setattr("tuyi.model.load.load_model", load_model)


def test_every_row_gets_one_prediction(unbroken: tuple[PredictSummary, list[Any]], tasks: TaskSet):
    summary, calls = unbroken
    found = by_id(summary.out)
    assert found.keys() == {f"r{number}" for number in range(COUNT)}
    assert (summary.rows, summary.resumed, summary.skipped) == (COUNT, 0, ())
    for one in found.values():
        labels = tasks[one.task].labels
        assert labels is not None
        assert tuple(one.probabilities) == labels.names
        assert sum(one.probabilities.values()) == pytest.approx(1, abs=1e-6)
        assert max(one.probabilities, key=one.probabilities.__getitem__) == one.label
        assert one.notes["calls"] == 1
        assert one.notes["output_tokens"] == 0
    told, *progress = calls
    assert told.startswith(
        "inherited from the model: colour: max_pixels 16384, max_tokens 2048, temperature 2; shape: "
    )
    assert progress[-1] == (COUNT, COUNT)
    assert len(progress) > 3, "several packs"
    assert sorted(progress) == progress


def test_over_long_rows_are_counted_and_noted(unbroken: tuple[PredictSummary, list[Any]]):
    summary, _ = unbroken
    found = by_id(summary.out)
    shortened = {
        key: one.notes for key, one in found.items() if one.notes.keys() - {"tokens", "calls", "output_tokens"}
    }
    assert shortened.keys() == {"r7", "r8"}
    assert shortened["r7"]["cut_characters"] > 500, "a task without turns loses text"
    assert shortened["r8"]["dropped_turns"] > 100
    assert summary.shortened == 2
    assert all(notes["tokens"] <= 2048 for notes in shortened.values())


def test_predictions_are_the_plain_models(unbroken: tuple[PredictSummary, list[Any]], data: Path, twins: Any):
    """Through the file, the packs and the calibration: against transformers, label by label."""
    twin, found = twins("qwen2_vl"), by_id(unbroken[0].out)
    checked = [row for row in read(data) if row.id in ("r4", "r5", "r6", "r11")]
    assert len(checked) == 4
    for example in checked:
        prompt = twin.inputs(example)["input_ids"].shape[1]
        expected = {}
        for name in found[example.id].logprobs:
            ids = twin.inputs(example, name)["input_ids"][0, prompt:]
            chosen = twin.logprobs(example, name)[prompt - 1 : -1].gather(1, ids[:, None])
            expected[name] = chosen.double().sum().item()
        assert dict(found[example.id].logprobs) == pytest.approx(expected, abs=1e-4)


def test_the_calibration_changes_chances_and_not_answers(unbroken: tuple[PredictSummary, list[Any]]):
    for one in read_predictions(unbroken[0].out):
        temperature = {"colour": 2.0, "shape": 1.0}[one.task]
        scaled = np.asarray(list(one.logprobs.values())) / temperature
        chances = np.exp(scaled) / np.exp(scaled).sum()
        assert list(one.probabilities.values()) == pytest.approx(chances.tolist(), abs=1e-6)
    assert read_run(unbroken[0].out)["temperature"] == {"colour": 2.0, "shape": 1.0, "talk": 1.0}


@pytest.mark.parametrize("kept", [0, 0.4, 0.999])
def test_a_killed_run_goes_on_where_it_was(
    unbroken: tuple[PredictSummary, list[Any]], model: Path, data: Path, tmp_path: Path, kept: float
):
    """The file cut at any byte, mostly in the middle of a line and of a character."""
    whole = unbroken[0].out.read_bytes()
    out = tmp_path / "pred.jsonl"
    out.write_bytes(whole[: int(len(whole) * kept)])
    run_file(out).write_bytes(run_file(unbroken[0].out).read_bytes())
    lines = out.read_bytes().count(b"\n")
    summary = predict(model, data, out, settings=SETTINGS)
    assert (summary.rows, summary.resumed) == (COUNT, lines)
    assert_same(by_id(out), by_id(unbroken[0].out))
    assert out.read_bytes().startswith(b"".join(whole.splitlines(keepends=True)[:lines])), "finished lines stay"


def test_a_finished_run_started_again_changes_nothing(
    unbroken: tuple[PredictSummary, list[Any]], model: Path, data: Path
):
    before = unbroken[0].out.read_bytes()
    other_speed = SETTINGS.model_copy(update={"pack_tokens": 5000})
    summary = predict(model, data, unbroken[0].out, settings=other_speed)
    assert (summary.rows, summary.resumed) == (COUNT, COUNT)
    assert unbroken[0].out.read_bytes() == before


@pytest.mark.usefixtures("no_weights")
def test_a_file_of_another_run_is_left_alone(
    unbroken: tuple[PredictSummary, list[Any]], model: Path, data: Path, tmp_path: Path, tasks: TaskSet
):
    out = tmp_path / "pred.jsonl"
    out.write_bytes(unbroken[0].out.read_bytes())
    before = out.read_bytes()
    with pytest.raises(
        OutputError, match=r"pred.jsonl exists and has no pred.jsonl.run.json beside it; choose another --out"
    ):
        predict(model, data, out, settings=SETTINGS)
    run_file(out).write_bytes(run_file(unbroken[0].out).read_bytes())
    with pytest.raises(OutputError, match=r"holds predictions of another run: its tasks is .*; choose another --out"):
        predict(model, data, out, settings=SETTINGS, budget={"max_pixels": 2048})
    other = write_rows(tmp_path / "other.jsonl", [{"id": "x", "task": "colour", "text": "y"}])
    with pytest.raises(OutputError, match="another run: its data is "):
        predict(model, other, out, settings=SETTINGS)
    with pytest.raises(OutputError, match="another run: its model is "):
        predict("builtin:tiny", data, out, task=tasks, settings=SETTINGS)
    run_file(out).write_text("{broken")
    with pytest.raises(FormatError, match=r"pred.jsonl.run.json: expected the description of a prediction run as JSON"):
        predict(model, data, out, settings=SETTINGS)
    assert out.read_bytes() == before


def test_a_budget_for_this_run_only(model: Path, data: Path, tmp_path: Path):
    told: list[str] = []
    out = tmp_path / "pred.jsonl"
    summary = predict(model, data, out, settings=SETTINGS, budget={"max_tokens": 130}, tell=told.append)
    assert summary.shortened > 2
    assert all(one.notes["tokens"] <= 130 for one in read_predictions(out))
    assert "max_tokens 130 (set now)" in told[0]
    assert read_run(out)["tasks"]["tasks"][0]["budget"]["max_tokens"] == 130
    with pytest.raises(TaskError, match="unknown setting; did you mean 'max_tokens'"):
        predict(model, data, tmp_path / "other.jsonl", budget={"max_token": 5})


def bad_data(picture: Callable[..., Image], folder: Path) -> Path:
    rows = data_rows(picture, folder)[:6]
    (folder / "5-0.png").write_bytes((folder / "5-0.png").read_bytes()[:200])
    rows[1]["images"] = ["gone.png"]
    rows[3]["task"] = "what"
    rows[4]["text"] = "two places <image> <image>"
    rows[0]["label"] = "not a label of the task"
    return write_rows(folder / "bad.jsonl", rows)


@pytest.mark.usefixtures("no_weights")
def test_bad_rows_stop_the_run_before_weights_load(model: Path, picture: Callable[..., Image], tmp_path: Path):
    data, out = bad_data(picture, tmp_path), tmp_path / "pred.jsonl"
    with pytest.raises(DataError, match=r"^4 rows cannot be used:\n") as caught:
        predict(model, data, out, settings=SETTINGS)
    message = str(caught.value)
    for found in ("row 2, id r1: ", "gone.png", "names task 'what'", "id r4", "5-0.png", "--on-bad-row skip"):
        assert found in message
    assert not out.exists()


def test_bad_rows_can_be_skipped_and_are_named(model: Path, picture: Callable[..., Image], tmp_path: Path):
    data, out = bad_data(picture, tmp_path), tmp_path / "pred.jsonl"
    summary = predict(model, data, out, settings=SETTINGS, on_bad_row="skip")
    assert by_id(out).keys() == {"r0", "r2"}, "a label in the data is not looked at"
    assert summary.rows == 2
    assert len(summary.skipped) == 4
    assert "row 2, id r1" in summary.skipped[0]


@pytest.mark.usefixtures("no_weights")
def test_what_is_wrong_from_the_start(model: Path, data: Path, tmp_path: Path, tasks: TaskSet):
    out = tmp_path / "pred.jsonl"
    with pytest.raises(TaskError, match="builtin:tiny has no task of its own"):
        predict("builtin:tiny", data, out)
    with pytest.raises(TaskError, match="was taught colour, shape, talk, --task says www2025-intent"):
        predict(model, data, out, task="www2025")
    with pytest.raises(ModelError, match=r"model folder .*nowhere does not exist"):
        predict(tmp_path / "nowhere", data, out)
    assert not out.exists()


def test_an_open_task_beside_closed_ones(model: Path, data: Path, unbroken: Any, tmp_path: Path):
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()][:5]
    rows = [{**row, "images": [str(data.parent / name) for name in row["images"]]} for row in rows]
    more = [{"id": f"t{n}", "task": "talk", "text": f"hello {n}"} for n in range(3)]
    out = tmp_path / "pred.jsonl"
    done = predict(model, write_rows(tmp_path / "rows.jsonl", [*rows, *more]), out, settings=SETTINGS)
    found = by_id(out)
    assert set(found) == {row["id"] for row in [*rows, *more]}
    assert done.cost is not None
    assert done.cost.output_tokens == max(found[row["id"]].notes["output_tokens"] for row in more) > 0
    expected = by_id(unbroken[0].out)
    assert_same({row["id"]: found[row["id"]] for row in rows}, {row["id"]: expected[row["id"]] for row in rows})
    again = predict(model, tmp_path / "rows.jsonl", out, settings=SETTINGS)
    assert (again.rows, again.resumed, again.cost) == (8, 8, done.cost)
    assert unbroken[0].cost is not None, "a task of this model is open"


def test_a_built_in_model_answers_at_once(data: Path, tmp_path: Path, tasks: TaskSet):
    summary = predict("builtin:tiny", data, tmp_path / "pred.jsonl", task=tasks, settings=SETTINGS)
    assert summary.rows == COUNT
