"""The predictions file: a round trip, and what a reader says about a broken one."""

from __future__ import annotations

import json

import pytest

from tuyi.errors import FormatError
from tuyi.predict.prediction import Prediction, read_predictions, read_run


def prediction(**changes: object) -> Prediction:
    values: dict[str, object] = {
        "id": "7",
        "task": "t",
        "label": "商品材质",
        "logprobs": {"商品材质": -0.25, "气泡": -3.5},
        "probabilities": {"商品材质": 0.9625, "气泡": 0.0375},
    }
    return Prediction(**{**values, **changes})  # type: ignore[arg-type]


def test_a_prediction_survives_its_line():
    for one in (
        prediction(),
        prediction(rationale="因为\n…", notes={"dropped_turns": 2, "calls": 1}),
        prediction(logprobs={}, probabilities={}),
    ):
        line = one.to_json()
        assert "\n" not in line
        assert Prediction.from_json(line) == one
    assert "商品材质" in prediction().to_json()


def test_tiny_probabilities_are_not_rounded_to_zero():
    one = prediction(probabilities={"商品材质": 1.0, "气泡": 1.23456789e-30})
    assert Prediction.from_json(one.to_json()).probabilities["气泡"] == pytest.approx(1.23456789e-30, rel=1e-7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": ""}, "label: expected a text that is not empty, found ''"),
        ({"id": None}, "id: expected a text that is not empty, found None"),
        ({"label": "别的"}, "label: '别的' is not among the 2 labels of its probabilities"),
        ({"logprobs": {"商品材质": -1.0}}, "expected the same labels, found '气泡' in one of them only"),
        ({"logprobs": {"商品材质": None, "气泡": -1}}, "logprobs: expected a finite number for '商品材质', found None"),
        ({"probabilities": {"商品材质": 0.9, "气泡": 0.9}}, "found lowest 0.9 and sum 1.8"),
        ({"notes": []}, r"notes: expected an object, found \[\]"),
        ({"rationale": 3}, "rationale: expected a text, found 3"),
        ({"colour": 3}, "unknown key 'colour', expected id, task, label"),
    ],
)
def test_a_wrong_line_is_told_with_file_and_line(tmp_path, change, message):
    file = tmp_path / "pred.jsonl"
    good = prediction().to_json()
    file.write_text(good + "\n" + json.dumps({**json.loads(good), **change}) + "\n", encoding="utf-8")
    with pytest.raises(FormatError, match=rf"pred\.jsonl, row 2: .*{message}"):
        list(read_predictions(file))


def test_infinite_log_probabilities_are_refused_before_they_reach_a_file():
    with pytest.raises(FormatError, match="expected a finite number for '气泡', found -inf"):
        prediction(logprobs={"商品材质": 0.0, "气泡": float("-inf")}).to_json()


def test_a_torn_last_line_is_told(tmp_path):
    file = tmp_path / "pred.jsonl"
    file.write_text(prediction().to_json() + "\n" + prediction().to_json()[:40], encoding="utf-8")
    with pytest.raises(FormatError, match=r"row 2: expected one prediction as a JSON object.*`tuyi predict` again"):
        list(read_predictions(file))


def test_missing_and_wrongly_encoded_files_are_told(tmp_path):
    with pytest.raises(FormatError, match=r"none\.jsonl does not exist; `tuyi predict MODEL DATA --out"):
        list(read_predictions(tmp_path / "none.jsonl"))
    file = tmp_path / "gbk.jsonl"
    file.write_bytes("商品".encode("gbk"))
    with pytest.raises(FormatError, match="cannot be read as UTF-8 JSON lines"):
        list(read_predictions(file))


def test_the_run_beside_the_file(tmp_path):
    file = tmp_path / "pred.jsonl"
    assert read_run(file) == {}
    (tmp_path / "pred.jsonl.run.json").write_text('{"model": "m"}', encoding="utf-8")
    assert read_run(file) == {"model": "m"}
    (tmp_path / "pred.jsonl.run.json").write_text("[]", encoding="utf-8")
    with pytest.raises(FormatError, match="expected a JSON object, found a list"):
        read_run(file)
