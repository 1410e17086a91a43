"""The whole of `evaluate`, and what it says about inputs that do not belong together."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from sklearn.metrics import f1_score

from tuyi.errors import DataError, FormatError, LabelError, ModelError, OutputError, TaskError
from tuyi.evaluate.judge import EvaluateSettings, evaluate
from tuyi.task import TaskSet

FAST = EvaluateSettings(resamples=100)


def run(case, **options):
    return evaluate(case.write(), case.examples, case.folder / "out", settings=FAST, **options)


def test_metrics_json_says_what_sklearn_says(case):
    found = run(case)
    value = json.loads(found.metrics.read_text(encoding="utf-8"))
    assert value["format"] == 1
    assert list(value["tasks"]) == ["colour", "mood"]
    scores = []
    for name, rows in (("colour", slice(0, 20)), ("mood", slice(20, 30))):
        gold, said = [one.label for one in case.examples[rows]], [one.label for one in case.predictions[rows]]
        scores.append(f1_score(gold, said, average="weighted"))
        assert value["tasks"][name]["metrics"]["weighted_f1"]["value"] == pytest.approx(scores[-1])
        assert value["tasks"][name]["right"] == sum(g == s for g, s in zip(gold, said, strict=True))
        assert value["tasks"][name]["calibration"]["rows"] == len(gold)
    assert value["overall"]["weighted_f1"]["value"] == pytest.approx(sum(scores) / 2)
    assert found.report.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_mistakes_are_the_most_confident_ones_in_order(case):
    settings = EvaluateSettings(resamples=100, mistakes=3)
    found = evaluate(case.write(), case.examples, case.folder / "out", settings=settings).tasks["colour"].mistakes
    wrong = [one for one in case.predictions[:20] if int(one.id) % 5 == 0]
    surest = sorted(wrong, key=lambda one: -one.probabilities[one.label])[:3]
    assert [item.example.id for item in found] == [one.id for one in surest]


def test_width_variants_of_a_label_count_as_the_label(case):
    case.examples = [replace(one, label=(one.label or "").replace("（深）", " (深)")) for one in case.examples]
    assert run(case).tasks["colour"].scores.right == 16


def test_unlabelled_rows_are_counted_and_left_out(case):
    case.examples[3] = replace(case.examples[3], label=None)
    found = run(case)
    assert (found.tasks["colour"].unlabelled, found.tasks["colour"].scores.rows) == (1, 19)
    assert "1 row has no label" in found.report.read_text(encoding="utf-8")


def test_a_task_without_any_label_is_left_out_and_said(case):
    case.examples = [replace(one, label=None if one.task == "mood" else one.label) for one in case.examples]
    found = run(case)
    assert dict(found.unscored) == {"mood": 10}
    assert "Task mood has no labelled row among its 10" in found.report.read_text(encoding="utf-8")


def test_without_any_label_there_is_nothing_to_score(case):
    case.examples = [replace(one, label=None) for one in case.examples]
    with pytest.raises(DataError, match="expected labelled rows, none of the 30 has a label"):
        run(case)


def test_ids_on_one_side_only_are_told_with_their_number(case):
    predictions = case.predictions
    case.predictions = predictions[4:]
    with pytest.raises(DataError, match=r"each of the 30 rows of the data, 4 \(first: 0, 1, 2\) have none; `tuyi pred"):
        run(case)
    case.predictions, case.examples = predictions, case.examples[:-1]
    with pytest.raises(DataError, match=r"the 29 rows of the data only, 1 \(first: 29\) are not in it"):
        run(case)


def test_ids_that_stand_twice_are_told(case):
    case.predictions.append(case.predictions[0])
    with pytest.raises(FormatError, match=r"pred\.jsonl, id 0: the id has two predictions"):
        run(case)
    case.predictions.pop()
    case.examples.append(case.examples[0])
    with pytest.raises(DataError, match=r"data\.json, row 1: id '0' stands in the data twice"):
        run(case)


def test_labels_outside_the_set_are_told_with_their_place(case):
    case.examples[2] = replace(case.examples[2], label="蓝色")
    with pytest.raises(
        LabelError, match=r"data\.json, row 3: label '蓝色' is not one of the task's 3 labels; the nearest"
    ):
        run(case)


def test_predictions_made_with_another_label_set_are_told(case, predict):
    tasks = TaskSet.model_validate(
        {"name": "both", "tasks": [{"name": "colour", "labels": ["红色", "绿色", "蓝色（深）", "黄色"]},
                                   {"name": "mood", "labels": ["喜欢", "讨厌"]}]}
    )  # fmt: skip
    with pytest.raises(FormatError, match="each of the 4 labels of colour, 1 have none \\(first: '黄色'\\)"):
        run(case, tasks=tasks)
    with pytest.raises(TaskError, match=r"id 0: answers task 'colour', expected one of mood; check --task"):
        run(case, tasks=TaskSet(name="one", tasks=tasks.tasks[1:]))


def test_predictions_that_list_no_labels_need_the_task(case):
    case.predictions = [replace(one, logprobs={}, probabilities={}) for one in case.predictions]
    with pytest.raises(TaskError, match="does not list the labels of task 'colour'"):
        run(case)
    tasks = TaskSet.model_validate(
        {"name": "both", "tasks": [{"name": "colour", "labels": ["红色", "绿色", "蓝色（深）"]},
                                   {"name": "mood", "labels": ["喜欢", "讨厌"]}]}
    )  # fmt: skip
    found = run(case, tasks=tasks)
    assert found.tasks["colour"].calibration is None
    assert "20 of the 20 predictions carry no probabilities" in found.report.read_text(encoding="utf-8")


def test_a_row_of_another_task_than_its_prediction_is_told(case):
    case.examples[0] = replace(case.examples[0], task="mood")
    with pytest.raises(DataError, match=r"row 1: the row is of task 'mood', its prediction in .* answers 'colour'"):
        run(case)


def test_temperatures_go_into_the_model_folder_only_when_asked(case):
    model = case.folder / "model"
    model.mkdir()
    (model / "tuyi.json").write_text('{"base": "x"}', encoding="utf-8")
    with pytest.raises(ModelError, match=r"pred\.jsonl\.run\.json names no model folder"):
        run(case, keep_calibration=True)
    (case.folder / "pred.jsonl.run.json").write_text(json.dumps({"model": str(model)}), encoding="utf-8")
    run(case)
    assert json.loads((model / "tuyi.json").read_text(encoding="utf-8")) == {"base": "x"}
    found = run(case, keep_calibration=True)
    value = json.loads((model / "tuyi.json").read_text(encoding="utf-8"))
    assert set(value) == {"base", "calibration"}
    assert value["calibration"]["colour"]["temperature"] == found.tasks["colour"].calibration.temperature
    (model / "tuyi.json").unlink()
    with pytest.raises(ModelError, match=r"expected a model folder with a tuyi\.json .*found none at"):
        run(case, keep_calibration=True)


def test_an_out_that_is_a_file_is_told(case):
    (case.folder / "out").write_text("taken", encoding="utf-8")
    with pytest.raises(OutputError, match="out: expected a folder to write the report into"):
        run(case)


def test_baselines_of_a_task_that_is_not_there_are_told(case):
    with pytest.raises(TaskError, match="baselines: task 'colr' was not evaluated, expected one of colour, mood"):
        run(case, baselines={"colr": {"text only": 0.5}})
