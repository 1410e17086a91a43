"""The look at every row before a model loads, and the store that keeps the rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tuyi.data.example import Example, Image, Text
from tuyi.data.problem import Problem
from tuyi.encode.store import RowStore
from tuyi.encode.survey import survey
from tuyi.errors import DataError, Place


@pytest.fixture(scope="module")
def encoder(twins: Callable[[str], Any]) -> Any:
    return twins("qwen2_vl").encoder


def test_sizes_of_every_row(encoder: Any, rows: dict[str, Example]):
    examples = [replace(example, weight=index + 0.5) for index, example in enumerate(rows.values())]
    found = survey(examples, encoder, labelled=True)
    assert len(found) == 9
    assert list(found.rows) == examples
    assert list(found.weights) == [index + 0.5 for index in range(9)]
    encoded = [encoder.encode(example, labelled=True) for example in examples]
    assert list(found.tokens) == [len(row) for row in encoded]
    assert list(found.supervised) == [row.supervised.sum() for row in encoded]
    assert list(found.patches) == [sum(len(item.patches.values) for item in row.media) for row in encoded]
    assert found.skipped == ()


def bad_rows(rows: dict[str, Example], folder: Path) -> list[Example | Problem]:
    place = Place(Path("d.json"), 3)
    return [
        rows["text"],
        Problem("placeholder", "expected 1 picture, found 0", place),
        replace(rows["image"], id="gone", content=(Image(folder / "gone.jpg"),), place=place),
        replace(rows["text"], place=place),
        replace(rows["text"], id="lost", task="what", place=place),
        replace(rows["text"], id="wrong", label="绿", place=place),
        replace(rows["text"], id="bare", label=None, place=place),
        replace(rows["text"], id="long", content=(Text("x"),), task="talk", label="long " * 3000, place=place),
        rows["image"],
    ]


BAD = (
    "d.json, row 3: expected 1 picture, found 0",
    "d.json, row 3, id gone: picture",
    "d.json, row 3: duplicate id 'text'; every row needs its own",
    "d.json, row 3: the row names task 'what', expected one of colour, shape, talk",
    "d.json, row 3, id wrong: label '绿' is not one of the task's 7 labels",
    "d.json, row 3: expected a label, found none; leave unlabelled rows to `tuyi predict`",
    "d.json, row 3, id long: the fixed wording, the labels",
)


def test_all_bad_rows_are_told_together(encoder: Any, rows: dict[str, Example], tmp_path: Path):
    with pytest.raises(DataError) as caught:
        survey(bad_rows(rows, tmp_path), encoder, labelled=True)
    message = str(caught.value)
    assert message.startswith("7 rows cannot be used:\n")
    for line, expected in zip(message.splitlines()[1:8], BAD, strict=True):
        assert line.startswith(expected)
    assert message.endswith("\nMend them (`tuyi check` lists them all), or pass --on-bad-row skip to leave them out")


def test_bad_rows_can_be_skipped_and_are_named(encoder: Any, rows: dict[str, Example], tmp_path: Path):
    found = survey(bad_rows(rows, tmp_path), encoder, labelled=True, on_bad_row="skip")
    assert [row.id for row in found.rows] == ["text", "image"]
    assert len(found.skipped) == 7
    assert all(line.startswith(expected) for line, expected in zip(found.skipped, BAD, strict=True))


def test_prediction_looks_at_no_label(encoder: Any, rows: dict[str, Example]):
    plain = replace(rows["image"], label=None)
    odd = [replace(plain, id=str(label), label=label) for label in (None, "绿", "红色", "x" * 5000)]
    found = survey(odd, encoder, labelled=False)
    assert list(found.tokens) == [len(encoder.encode(plain, labelled=False))] * 4
    assert list(found.supervised) == [0] * 4


def test_unwanted_rows_are_not_looked_at(encoder: Any, rows: dict[str, Example], tmp_path: Path):
    gone = replace(rows["image"], id="gone", content=(Image(tmp_path / "gone.jpg"),))
    found = survey([gone, rows["text"]], encoder, labelled=True, wanted=lambda row: row.id != "gone")
    assert [row.id for row in found.rows] == ["text"]
    twice = survey([gone, gone], encoder, labelled=True, on_bad_row="skip", wanted=lambda row: False)
    assert len(twice.skipped) == 1
    assert "duplicate id 'gone'" in twice.skipped[0]


def test_many_bad_rows_are_counted(encoder: Any):
    with pytest.raises(DataError, match=r"^13 rows cannot be used:\n(.*\n){10}… and 3 more\nMend them"):
        survey([Problem("media", f"bad {n}", Place(row=n)) for n in range(13)], encoder, labelled=True)


def test_the_store_keeps_rows_and_finds_them_by_number(rows: dict[str, Example]):
    store = RowStore()
    for example in rows.values():
        store.append(example)
        assert store[len(store) - 1] == example
    assert len(store) == 9
    assert store[4] == rows["images"]
    assert list(store) == list(rows.values())
    for index in (-1, 9):
        with pytest.raises(IndexError):
            store[index]
    assert list(RowStore()) == []


def test_labels_are_tokenised_once(encoder: Any, rows: dict[str, Example], monkeypatch: pytest.MonkeyPatch):
    """However many rows ask for them."""
    answers = encoder.answers(encoder.tasks.of(rows["text"]))
    before = encoder.encode(rows["text"], labelled=False)
    monkeypatch.setattr(answers, "_tokens", lambda text: pytest.fail(f"{text!r} was tokenised again"))
    after = encoder.encode(rows["text"], labelled=False)
    assert after.ids.tolist() == before.ids.tolist()
