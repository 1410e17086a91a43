"""Reasons as rows of their own beside plain labels, and inside the answer."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import tuyi
from tuyi.data.example import Example, Text, Turn
from tuyi.data.problem import Problem
from tuyi.data.write import ExampleWriter
from tuyi.encode.encoder import Encoder
from tuyi.encode.pack import pack
from tuyi.encode.survey import survey
from tuyi.errors import ConfigError, DataError
from tuyi.model.folder import read_info
from tuyi.model.forward import to_device
from tuyi.task.catalog import TaskSet, parse_tasks
from tuyi.train.feed import Feed, Lesson
from tuyi.train.loss import answer_loss
from tuyi.train.reasons import ReasonTask, lessons, need_reasons, with_reasons
from tuyi.train.settings import ReasonSettings, TrainSettings
from tuyi.train.steps import Steps
from tuyi.train.taught import teach

HALF = ReasonSettings(weight=0.5)


@pytest.fixture
def examples(picture):
    told = Turn("user", (Text("你好"),)), Turn("assistant", (Text("可以的"),))
    return [
        Example(
            "a", (picture(70, 90, 1), Text(" 什么颜色")), task="colour", label="红色", rationale='像"火"\n一样 <image>'
        ),
        Example("b", (Text("没有图片"),), task="colour", label="红色(浅)", weight=2.0),
        Example("c", (Text("和"),), task="shape", label="ROUND", rationale="no corners", weight=0.5, history=told),
        Example("d", (Text("?"),), task="talk", label="红色的。", rationale="ignored: nothing is labelled"),
    ]


@pytest.fixture
def asking(tasks):
    return with_reasons(tasks, HALF)


@pytest.fixture
def encoder(twins, asking):
    frontend = twins("qwen2_vl").model.frontend
    return Encoder(frontend.tokenizer, frontend.spec, asking)


def taken(encoder, tasks, examples):
    return survey(lessons(examples, tasks, HALF), encoder, labelled=True)


def test_a_row_with_a_reason_is_followed_by_one_that_asks_for_it(tasks, examples):
    found = list(lessons(examples, tasks, HALF))
    assert [row.id for row in found] == ["a", "a (reason)", "b", "c", "c (reason)", "d"]
    assert [row.task for row in found] == ["colour", "colour.reason", "colour", "shape", "shape.reason", "talk"]
    assert found[1].label == examples[0].rationale
    assert found[1].content == examples[0].content
    assert list(lessons(examples, tasks, ReasonSettings())) == examples


def test_blank_reasons_wrong_labels_and_bad_rows_make_no_row(tasks, examples):
    bad = Problem("type", "no", examples[0].place)
    rows = [
        replace(examples[0], rationale=" \n"),
        replace(examples[0], label="blue"),
        replace(examples[0], task="x"),
        bad,
    ]
    assert len(list(lessons(rows, tasks, HALF))) == len(rows)


def test_each_labelled_task_gets_a_question(tasks, asking):
    assert [task.name for task in asking][3:] == ["colour.reason", "shape.reason"]
    first, second = asking.tasks[3:]
    assert isinstance(first, ReasonTask)
    assert first.labels is None
    assert not first.is_chat
    assert "理由" in first.wording[1]
    assert "label" in second.wording[1]
    assert first.budget == tasks.tasks[0].budget
    assert with_reasons(tasks, ReasonSettings()) is tasks
    own = with_reasons(tasks, ReasonSettings(weight=1, prompt="Why? {content}"))
    assert own.tasks[3].wording == ("Why? ", "")


def test_the_answer_is_the_reason_and_earlier_turns_are_not_learned(encoder, tasks, examples):
    rows = taken(encoder, tasks, examples)
    for at, row in enumerate(rows.rows):
        encoded = encoder.encode(row, labelled=True)
        assert int(encoded.supervised.sum()) == rows.supervised[at]
        assert len(encoded) == rows.tokens[at]
    last = encoder.encode(rows.rows[4], labelled=True)
    taught = last.ids[last.supervised][:-1]
    assert encoder._template._tokenizer.decode(taught) == "no corners"


def test_the_mean_loss_of_a_reason_counts_as_told(encoder, tasks, examples):
    rows = taken(encoder, tasks, examples)
    weights = teach(rows, encoder, TrainSettings(reasons=HALF)).weights
    assert [weights[at] for at in (0, 2, 3, 5)] == [1, 2, 0.5, 1]
    for label, reason, weight in ((0, 1, 1), (3, 4, 0.5)):
        assert weights[reason] * rows.supervised[reason] == pytest.approx(0.5 * weight * rows.supervised[label])


def test_a_step_is_the_weighted_mean_of_label_and_reason_losses(twins, encoder, tasks, examples):
    twin, settings = twins("qwen2_vl"), TrainSettings(reasons=HALF)
    rows = taken(encoder, tasks, examples)
    taught = teach(rows, encoder, settings)
    steps = Steps(rows, taught.plan, taught.weights, rank=0, world=1, pack_tokens=100_000)
    feed = Feed(steps, encoder, torch.device("cpu"), workers=1, lesson=Lesson(taught.shares, settings.soft))
    model = twin.model.hf
    with torch.inference_mode():
        ((ready, _),) = feed.packs(0)
        found = float(answer_loss(model(batch=ready.batch, scored=True), ready.batch, ready.soft)) / steps.weight(0)
        feed.close()
        means = []
        for row in rows.rows:
            batch = to_device(pack([encoder.encode(row, labelled=True)]), twin.model.spec, twin.model.device)
            means.append(-float(model(batch=batch, scored=True).mean()))
    counts = np.asarray([rows.supervised[at] for at in (0, 0, 2, 3, 3, 5)]) * [1, 0.5, 2, 0.5, 0.25, 1]
    assert found == pytest.approx(float(np.average(means, weights=counts)), rel=1e-5)


def test_reasons_go_with_the_label_that_they_explain(encoder, tasks, examples):
    some = [one for one in examples if one.task != "talk"]
    rows = taken(encoder, tasks, some)
    settings = TrainSettings(reasons=HALF, class_weights="balanced", sampling="balanced", label_smoothing=0.1)
    taught = teach(rows, encoder, settings)
    assert [share is None for share in taught.shares] == [False, True, False, False, True]
    plain = teach(survey(some, encoder, labelled=True), encoder, TrainSettings(class_weights="balanced"))
    assert [taught.weights[at] for at in (0, 2, 3)] == list(plain.weights)
    named = teach(rows, encoder, TrainSettings(reasons=HALF, task_weights={"colour": 1, "shape": 1}))
    assert named.plan.steps > 0
    assert taught.told == ("2 of 3 rows have a reason, which counts 0.5",)


def test_no_reason_anywhere_is_an_error(encoder, tasks, asking, examples):
    rows = taken(encoder, tasks, [replace(one, rationale=None) for one in examples])
    with pytest.raises(
        DataError, match=r"no labelled row has a rationale to learn; write some with `tuyi rationalize`"
    ):
        need_reasons(rows, asking, HALF)
    need_reasons(rows, tasks, ReasonSettings())


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"answer": "reason", "labels": ["x", "y"]}, "answers of task one have them inside; use answer: label"),
        ({"answer": "open"}, "learns why labels are right, and the tasks have none"),
    ],
)
def test_tasks_that_cannot_be_asked(task, message):
    tasks = parse_tasks({"name": "one", "tasks": [{"name": "one", **task}]}, "one")
    with pytest.raises(ConfigError, match=message):
        with_reasons(tasks, HALF)


def test_a_taken_name_is_refused():
    one = {"labels": ["x", "y"]}
    tasks = parse_tasks({"name": "s", "tasks": [{"name": "a", **one}, {"name": "a.reason", **one}]}, "s")
    with pytest.raises(ConfigError, match=r"makes a task called a.reason, and there is one; rename it"):
        with_reasons(tasks, HALF)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weight": 0}, "greater than 0"),
        ({"weight": -1}, "greater than 0"),
        ({"prompt": "why?"}, "expected {content} once"),
        ({"prompt": "{content} {content}"}, "expected {content} once"),
        ({"prompt": "{content} {label}"}, "expected {content} once"),
        ({"prompt": "{content} {"}, "expected {content} once"),
    ],
)
def test_settings_that_cannot_be(given, message):
    with pytest.raises(ValueError, match=message):
        ReasonSettings(**given)


def room_for_reasons(answer):
    task = {"name": "colours", "labels": ["red", "green", "blue"], "answer": answer}
    return parse_tasks({"name": "c", "tasks": [{**task, "budget": {"max_pixels": 3136, "max_tokens": 256}}]}, "c")


@pytest.fixture
def reasoned(pictures, tmp_path):
    file = tmp_path / "rows.jsonl"
    with ExampleWriter(file, "messages") as writer:
        for number, row in enumerate(tuyi.read(pictures)):
            why = f'it is "{row.label}"\nall over 😀' if number % 4 else None
            writer.write(replace(row, rationale=why))
    return file


def losses(folder):
    entries = [json.loads(line) for line in (folder / "loss.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in entries if "loss" in entry]


def test_a_run_learns_reasons_and_predicts_plain_labels(pictures, reasoned, quick, tmp_path):
    colours = room_for_reasons("label")
    settings = TrainSettings(**quick, reasons={"weight": 0.5})
    done = tuyi.train(reasoned, tmp_path / "model", task=colours, valid=pictures, settings=settings)
    assert done.rows == 24 + 18
    assert done.steps == 12
    assert losses(done.out)[-1] < losses(done.out)[0]
    assert read_info(done.out).tasks == colours
    assert "weighted_f1" in done.scores
    tuyi.predict(done.out, pictures, tmp_path / "p.jsonl")
    assert {one.label for one in tuyi.read_predictions(tmp_path / "p.jsonl")} <= {"red", "green", "blue"}


def test_tasks_apart_learn_their_own_reasons(reasoned, quick, tmp_path):
    colours = room_for_reasons("label")
    tasks = TaskSet(name="two", tasks=(*colours.tasks, colours.tasks[0].model_copy(update={"name": "again"})))
    file = tmp_path / "two.jsonl"
    with ExampleWriter(file, "messages") as writer:
        for number, row in enumerate(tuyi.read(reasoned)):
            task = ("colours", "again")[number % 2]
            writer.write(replace(row, task=task, rationale=row.rationale if task == "again" else None))
    settings = TrainSettings(**{**quick, "epochs": 1}, apart=True, reasons={"weight": 2})
    done = tuyi.train(file, tmp_path / "model", task=tasks, settings=settings)
    assert done.rows == 24 + 12
    assert read_info(done.out / "again").tasks.tasks == tasks.tasks[1:]


@pytest.fixture
def inside():
    return room_for_reasons("reason")


def test_reasons_inside_answers_that_are_missing(inside, reasoned, settings, tmp_path):
    message = r"6 rows cannot be used:\n.*row 1.*the answer format has a rationale, the row has none.*tuyi rationalize"
    with pytest.raises(DataError, match=message):
        tuyi.train(reasoned, tmp_path / "model", task=inside, settings=settings)


def test_a_run_on_reasons_inside_answers(inside, reasoned, settings, tmp_path):
    file = tmp_path / "whole.jsonl"
    with ExampleWriter(file, "messages") as writer:
        for row in tuyi.read(reasoned):
            writer.write(replace(row, rationale=row.rationale or "so"))
    done = tuyi.train(file, tmp_path / "model", task=inside, settings=settings)
    assert done.rows == 24
    assert losses(done.out)[-1] < losses(done.out)[0]
    assert read_info(done.out).tasks == inside
