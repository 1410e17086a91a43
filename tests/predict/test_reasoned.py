"""Reasoned answers from training to the predictions file: validation on the way, limits, resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tuyi
from tuyi.data.example import Example, Text
from tuyi.encode.encoder import Encoder
from tuyi.errors import ConfigError, EngineError, OutputError
from tuyi.model.load import load_frontend
from tuyi.predict.limits import Cost, cost_of, keep_limits, most_calls
from tuyi.predict.prediction import Prediction, read_predictions
from tuyi.predict.run import predict
from tuyi.predict.settings import PredictSettings
from tuyi.task.answer import Free
from tuyi.task.catalog import TaskSet, parse_tasks
from tuyi.train.progress import read_log
from tuyi.train.settings import TrainSettings

REASONS = {"fruit": 'it "grows" on a tree', "tool": "one works\nwith it"}
WORDS = {"fruit": ["apple", "pear", "plum", "cherry"], "tool": ["hammer", "saw", "drill", "file"]}


@pytest.fixture(scope="module")
def tasks() -> TaskSet:
    task = {"name": "things", "labels": list(REASONS), "answer": "reason", "budget": {"max_tokens": 256}}
    return parse_tasks({"name": "things", "tasks": [task]}, "things")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [
        {"id": word, "text": f"{word} {word}", "label": label, "rationale": REASONS[label]}
        for label, words in WORDS.items()
        for word in words
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def model(data: Path, tasks: TaskSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained until it writes its reasons by heart; validation rows bring none."""
    folder = tmp_path_factory.mktemp("reasoned")
    bare = folder / "valid.jsonl"
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    bare.write_text(
        "".join(json.dumps({key: row[key] for key in ("id", "text", "label")}) + "\n" for row in rows), encoding="utf-8"
    )
    settings = TrainSettings(epochs=40, batch_rows=8, lr=4e-3, eval_steps=40, tensorboard=False)
    tuyi.train(data, folder / "model", task=tasks, valid=bare, settings=settings)
    return folder / "model"


def test_reasons_are_written_and_labels_scored(model: Path, data: Path, tmp_path: Path):
    done = predict(model, data, tmp_path / "p.jsonl", settings=PredictSettings(device="cpu"))
    found = list(read_predictions(done.out))
    assert len(found) == 8
    right = [row for row in found if row.label == ("fruit" if row.id in WORDS["fruit"] else "tool")]
    assert len(right) == 8
    assert {row.rationale for row in found} == set(REASONS.values())
    for row in found:
        assert row.rationale == REASONS[row.label]
        assert set(row.probabilities) == set(REASONS)
    assert done.cost == Cost(1, max(int(row.notes["output_tokens"]) for row in found))
    scored = [entry for entry in read_log(model / "loss.jsonl") if "eval_things_accuracy" in entry]
    assert scored[-1]["eval_things_accuracy"] == 1.0


def test_free_text_is_shortened_to_keep_a_limit(model: Path, data: Path, tmp_path: Path):
    told: list[str] = []
    frontend = load_frontend(str(model))
    assert frontend.info is not None
    most = Encoder(frontend.tokenizer, frontend.spec, frontend.info.tasks).answers(frontend.info.tasks.tasks[0]).most
    limit = most - 80 + 4
    settings = PredictSettings(device="cpu", max_output_tokens=limit, max_calls=3)
    done = predict(model, data, tmp_path / "p.jsonl", settings=settings, tell=told.append)
    assert "things: rationale of at most 4 tokens instead of 80, to keep to predict.max_output_tokens" in told
    found = list(read_predictions(done.out))
    assert all(row.notes["cut_free"] is True for row in found)
    beginnings = {reason[:length] for reason in REASONS.values() for length in range(1, 15)}
    assert {row.rationale for row in found} <= beginnings
    assert done.cost is not None
    assert done.cost.calls == 1
    assert done.cost.output_tokens <= limit
    again = predict(model, data, tmp_path / "p.jsonl", settings=settings)
    assert (again.resumed, again.cost) == (8, done.cost)
    with pytest.raises(OutputError, match="holds predictions of another run: its tasks"):
        predict(model, data, tmp_path / "p.jsonl", settings=PredictSettings(device="cpu"))


def test_limits_that_cannot_be_kept_stop_the_run_before_it_starts(model: Path, data: Path, tmp_path: Path):
    with pytest.raises(
        ConfigError, match=r"max_output_tokens is 9, and an answer of task things has \d+ tokens beside"
    ):
        predict(model, data, tmp_path / "p.jsonl", settings=PredictSettings(device="cpu", max_output_tokens=9))
    assert not list(tmp_path.iterdir())


def asked(answer: Any) -> tuple[TaskSet, Encoder]:
    task: dict[str, Any] = {"name": "t", "answer": answer}
    if answer != "open":
        task["labels"] = ["one", "the other one"]
    tasks = parse_tasks({"name": "s", "tasks": [task]}, "s")
    frontend = load_frontend("builtin:tiny", ["one the other one"])
    return tasks, Encoder(frontend.tokenizer, frontend.spec, tasks)


@pytest.mark.parametrize("limit", [60, 61, 75, 104, 200])
def test_no_answer_can_be_longer_than_the_limit(limit: int):
    for answer in (
        "open",
        "label",
        [
            {"free": "rationale", "max_tokens": 70},
            {"literal": "\nLabel: "},
            {"choice": "label"},
            {"literal": "?"},
            {"free": "answer", "max_tokens": 3},
        ],
    ):
        tasks, encoder = asked(answer)
        kept = keep_limits(tasks, encoder, PredictSettings(max_output_tokens=limit))
        most = encoder.answers(kept.tasks[0]).most
        before = encoder.answers(tasks.tasks[0]).most
        assert most == min(limit, before)
        assert all(one.max_tokens > 0 for one in kept.tasks[0].answer.segments if isinstance(one, Free))


def test_calls_by_engine():
    plain, reasoned = asked("label")[0].tasks[0], asked("reason")[0].tasks[0]
    assert [most_calls(one, PredictSettings()) for one in (plain, reasoned)] == [1, 1]
    assert [most_calls(one, PredictSettings(engine="vllm")) for one in (plain, reasoned)] == [1, 2]
    settings = PredictSettings(engine="api", max_calls=3)
    assert [most_calls(one, settings) for one in (plain, reasoned)] == [3, 6]
    tasks, encoder = asked("reason")
    with pytest.raises(ConfigError, match=r"max_calls is 3, and an answer of task t may take 6 calls .*answer_retries"):
        keep_limits(tasks, encoder, settings)


def test_a_row_beyond_a_limit_is_named():
    rows = [
        Prediction("a", "t", "x", {}, {}, notes={"calls": 1, "output_tokens": 50}),
        Prediction("b", "t", "", {}, {}, notes={"calls": 4, "output_tokens": 9}),
    ]
    assert cost_of(rows, PredictSettings(max_output_tokens=50)) == Cost(4, 50)
    assert Prediction.from_json(rows[1].to_json()) == rows[1], "an open answer may be empty"
    with pytest.raises(EngineError, match=r"row 'b' took 4 calls, predict\.max_calls is 3"):
        cost_of(rows, PredictSettings(max_calls=3))


def test_one_question_to_a_model_in_this_process(model: Path):
    ours = tuyi.load(model, settings=PredictSettings(device="cpu"))
    said = ours.predict([Example("q", (Text("pear pear"),))])[0]
    ours.close()
    assert (said.label, said.rationale) == ("fruit", REASONS["fruit"])


@pytest.mark.slow
def test_two_processes_write_what_one_does(model: Path, data: Path, tmp_path: Path):
    found = {}
    for device in ("cpu", "cpu,cpu"):
        done = predict(model, data, tmp_path / f"{device}.jsonl", settings=PredictSettings(device=device))
        found[device] = {one.id: (one.label, one.rationale, one.notes) for one in read_predictions(done.out)}
    assert len(found["cpu"]) == 8
    assert found["cpu,cpu"] == found["cpu"]
