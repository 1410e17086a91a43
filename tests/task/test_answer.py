"""Answer formats: what a training row teaches."""

from __future__ import annotations

import json

import pytest

from tuyi.data.example import Example, Text
from tuyi.errors import LabelError, TaskError
from tuyi.task.catalog import parse_tasks
from tuyi.task.task import Task


def task(**changes: object) -> Task:
    value = {"name": "t", "labels": ["是否好用", "气泡（膜）"], **changes}
    return parse_tasks({"name": "t", "tasks": [value]}, "t").tasks[0]


def row(label: str | None, rationale: str | None = None) -> Example:
    return Example(id="1", content=(Text("x"),), label=label, rationale=rationale)


def test_a_plain_answer_is_the_label_in_the_tasks_spelling():
    one = task()
    assert one.answer.is_plain
    assert one.answer.has_choice
    assert not one.answer.needs_rationale
    assert one.target(row("气泡(膜) ")) == "气泡（膜）"
    assert one.target(row(None)) is None
    with pytest.raises(LabelError, match="the nearest is '气泡（膜）'"):
        one.target(row("气泡膜"))
    assert task(answer="label").answer == one.answer


@pytest.mark.parametrize(
    "reason", ['says "no"', "two\nlines\ttab", "back\\slash \\n", "emoji 😀", "", "控制\x00\x1f", "'{}'"]
)
def test_a_reasoned_answer_is_json_whatever_the_reason(reason: str):
    one = task(answer="reason")
    assert one.answer.needs_rationale
    assert not one.answer.is_plain
    answer = one.target(row("是否好用", reason))
    assert answer is not None
    assert json.loads(answer) == {"理由": reason, "所属类别": "是否好用"}
    assert list(json.loads(answer)) == ["理由", "所属类别"], "the reason comes first"
    assert "\n" not in answer


def test_a_reasoned_answer_needs_a_reason():
    with pytest.raises(ValueError, match="the answer format has a rationale, the row has none; add one"):
        task(answer="reason").target(row("是否好用"))


def test_segments_can_be_listed():
    one = task(answer=[{"literal": "答："}, {"choice": "label"}, {"literal": "。"}])
    assert one.target(row("是否好用")) == "答：是否好用。"
    assert not one.answer.is_plain
    assert Task.model_validate(one.model_dump(mode="json")) == one


def test_an_open_task_teaches_the_answer_as_it_stands():
    one = task(labels=None, answer="open")
    assert one.target(row("  any {text}\n")) == "  any {text}\n"
    assert not one.answer.has_choice


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": "labels"}, "expected a list of segments or one of label, reason, open, found 'labels'"),
        ({"answer": "open"}, "the task lists labels, the answer format never asks for one"),
        ({"labels": None}, "the answer format asks for a label, the task lists none"),
        ({"answer": []}, "tasks.0.answer.segments"),
        ({"answer": [{"literal": ""}, {"choice": "label"}]}, "tasks.0.answer.segments.0"),
    ],
)
def test_formats_that_make_no_sense_are_refused(changes: dict[str, object], message: str):
    with pytest.raises(TaskError, match=message):
        task(**changes)
