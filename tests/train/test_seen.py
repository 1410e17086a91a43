"""Counts of the rows that a model learned from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tuyi.data.example import Example
from tuyi.encode.encoder import Encoder
from tuyi.encode.survey import survey
from tuyi.model.folder import SeenRows
from tuyi.task.catalog import TaskSet
from tuyi.train.reasons import lessons, with_reasons
from tuyi.train.seen import seen
from tuyi.train.settings import ReasonSettings


def test_rows_are_counted_for_each_task(twins: Any, rows: dict[str, Example]):
    encoder = twins("qwen2_vl").encoder
    found = seen(survey(rows.values(), encoder, labelled=True), encoder.tasks)
    assert list(found) == ["colour", "shape"]
    colour, shape = found["colour"], found["shape"]
    assert (colour.rows, colour.with_pictures, colour.most_pictures) == (5, 3, 2)  # history's picture counts
    assert (colour.with_videos, colour.most_videos) == (1, 1)
    labels = {"A": 1, "AB": 1, "红": 0, "红色": 1, "红色（深）": 1, "红色(浅)": 1, "Ｂ类 other colour": 0}
    assert colour.labels == labels
    assert list(colour.labels) == list(labels)
    assert shape == SeenRows(
        rows=4, labels={"round": 1, "square": 1, "z": 2}, with_pictures=3, most_pictures=3, with_videos=1, most_videos=2
    )


def test_questions_for_reasons_are_no_rows(twins: Any, tasks: TaskSet, rows: dict[str, Example]):
    settings = ReasonSettings(weight=0.5)
    learned = with_reasons(tasks, settings)
    frontend = twins("qwen2_vl").model.frontend
    explained = [replace(rows[name], rationale="so it is") for name in ("text", "image")]
    taught = survey(
        lessons(explained, tasks, settings), Encoder(frontend.tokenizer, frontend.spec, learned), labelled=True
    )
    assert len(taught) == 4
    assert seen(taught, learned)["colour"].rows == 2
