"""The submission file, in the official form and the bare one."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from tuyi.errors import DataError, FormatError
from tuyi.predict.prediction import Prediction
from tuyi.predict.submission import write_submission
from tuyi.task import TaskSet, load_tasks

SCENE = 'Picture 1: <image>\n你是一个电商领域识图专家,"可以"…。'
INTENT = "你是…\n<用户与客服的对话 START>\n用户: <image>, 这个<image>\n<用户与客服的对话 END>\n请…"
ROWS: list[dict[str, Any]] = [
    {"id": "a1", "instruction": SCENE, "input": "", "output": "", "image": ["x y.jpg"]},
    {"id": "b2", "instruction": INTENT, "input": "", "output": "", "image": ["1.jpg", "it's.jpg"]},
    {"id": "c3", "instruction": INTENT.replace("<image>", ""), "input": "", "output": "", "image": []},
]
LABELS = {"a1": "下单过程中出现异常（显示购买失败浮窗）", "b2": "是否好用", "c3": "气泡"}


@pytest.fixture(scope="module")
def www2025() -> TaskSet:
    return load_tasks("www2025")


def write_data(folder: Path, rows: list[dict[str, Any]]) -> Path:
    file = folder / "test.json"
    file.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return file


def write_predictions(folder: Path, labels: dict[str, str]) -> Path:
    file = folder / "pred.jsonl"
    lines = [Prediction(id=key, task="t", label=label, logprobs={}, probabilities={}) for key, label in labels.items()]
    file.write_text("".join(line.to_json() + "\n" for line in lines), encoding="utf-8")
    return file


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path, ROWS)


def test_the_full_form_has_every_column_and_predict(data: Path, tmp_path: Path, www2025: TaskSet):
    out = tmp_path / "deeper" / "submission.csv"
    backwards = dict(reversed(LABELS.items()))
    assert write_submission(out, data, write_predictions(tmp_path, backwards), www2025) == 3
    raw = out.read_bytes()
    assert raw.startswith(b"\xef\xbb\xbf"), "utf-8-sig"
    assert raw.count(b"\xef\xbb\xbf") == 1
    rows = list(csv.DictReader(io.StringIO(raw.decode("utf-8-sig"), newline="")))
    assert list(rows[0]) == ["id", "instruction", "input", "output", "image", "predict"]
    assert [row["id"] for row in rows] == ["a1", "b2", "c3"], "the order of the test rows"
    assert {row["id"]: row["predict"] for row in rows} == LABELS
    for row, given in zip(rows, ROWS, strict=True):
        assert row["instruction"] == given["instruction"]
        assert row["image"] == str(given["image"])
    assert rows[1]["image"] == "['1.jpg', \"it's.jpg\"]"
    assert [path.name for path in out.parent.iterdir()] == ["submission.csv"]


def test_the_bare_form(data: Path, tmp_path: Path, www2025: TaskSet):
    out = tmp_path / "s.csv"
    assert write_submission(out, data, write_predictions(tmp_path, LABELS), www2025, "bare") == 3
    assert out.read_bytes().decode("utf-8-sig").splitlines() == [
        "id,predict",
        *(f"{key},{label}" for key, label in LABELS.items()),
    ]


def test_columns_are_exactly_those_of_the_test_file(tmp_path: Path, www2025: TaskSet):
    rows = [{"image": row["image"], "instruction": row["instruction"], "source": 7, "id": row["id"]} for row in ROWS]
    out = tmp_path / "s.csv"
    write_submission(out, write_data(tmp_path, rows), write_predictions(tmp_path, LABELS), www2025)
    header, first = list(csv.reader(io.StringIO(out.read_text(encoding="utf-8-sig"))))[:2]
    assert header == ["image", "instruction", "source", "id", "predict"]
    assert first[2] == "7"


@pytest.mark.parametrize("form", ["full", "bare"])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            {"a1": LABELS["a1"], "c3": "气泡"},
            r"test.json, row 2, id b2: no prediction for this row; run `tuyi predict` to the end",
        ),
        ({**LABELS, "d4": "气泡", "e5": "气泡"}, r"2 predictions have no row in .*test.json, the first is id 'd4'"),
        ({**LABELS, "c3": "气 泡"}, r"row 3, id c3: predicted '气 泡' is not a label of www2025-intent"),
        ({**LABELS, "a1": "气泡"}, r"row 1, id a1: predicted '气泡' is not a label of www2025-scene"),
    ],
)
def test_what_does_not_match_is_refused(
    data: Path, tmp_path: Path, www2025: TaskSet, form: Any, labels: dict[str, str], message: str
):
    out = tmp_path / "out" / "s.csv"
    with pytest.raises(DataError, match=message):
        write_submission(out, data, write_predictions(tmp_path, labels), www2025, form)
    assert list(out.parent.iterdir()) == [], "whole or not at all"


def test_an_earlier_submission_stays_when_a_new_one_fails(data: Path, tmp_path: Path, www2025: TaskSet):
    out = tmp_path / "s.csv"
    write_submission(out, data, write_predictions(tmp_path, LABELS), www2025)
    before = out.read_bytes()
    with pytest.raises(DataError):
        write_submission(out, data, write_predictions(tmp_path, {}), www2025)
    assert out.read_bytes() == before


def test_a_column_that_comes_later(tmp_path: Path, www2025: TaskSet):
    rows = [ROWS[0], {**ROWS[1], "note": "x"}, ROWS[2]]
    with pytest.raises(DataError, match="id b2: column 'note' is missing from the first row; use the bare form"):
        write_submission(tmp_path / "s.csv", write_data(tmp_path, rows), write_predictions(tmp_path, LABELS), www2025)


def test_a_prediction_made_twice_is_refused(data: Path, tmp_path: Path, www2025: TaskSet):
    file = write_predictions(tmp_path, LABELS)
    file.write_text(file.read_text(encoding="utf-8") * 2, encoding="utf-8")
    with pytest.raises(DataError, match=r"pred.jsonl holds id 'a1' twice"):
        write_submission(tmp_path / "s.csv", data, file, www2025)


def test_a_folder_of_pictures_has_no_columns(tmp_path: Path, www2025: TaskSet, picture: Any):
    folder = tmp_path / "pictures"
    for label in ("商品头图", "支付页面"):
        (folder / label).mkdir(parents=True)
        (folder / label / "1.png").write_bytes(picture().source)
    with pytest.raises(DataError, match="is a folder of pictures and has no columns to repeat; use the bare form"):
        write_submission(tmp_path / "s.csv", folder, write_predictions(tmp_path, LABELS), www2025)


def test_predictions_that_are_not_there(data: Path, tmp_path: Path, www2025: TaskSet):
    with pytest.raises(FormatError, match=r"predictions file .*none.jsonl does not exist"):
        write_submission(tmp_path / "s.csv", data, tmp_path / "none.jsonl", www2025)
