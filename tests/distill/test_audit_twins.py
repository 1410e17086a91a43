"""Rows that show the same, although files and texts differ in form."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from tuyi.data import Example, Image, Text
from tuyi.data.fingerprint import MediaDigests
from tuyi.distill.twins import alike, merge_groups, twin_groups
from tuyi.errors import MediaError
from tuyi.task import TaskSet

TASKS = TaskSet.model_validate(
    {"name": "two", "tasks": [{"name": "one", "labels": ["a", "b"]}, {"name": "other", "labels": ["a", "b"]}]}
)


def row(id: str, *content: Any, task: str = "one") -> Example:
    return Example(id, tuple(Text(part) if isinstance(part, str) else part for part in content), task=task, label="a")


def groups(rows: list[Example], near: bool = True) -> list[list[str]]:
    return [[rows[at].id for at in found] for found in twin_groups(rows, TASKS, MediaDigests(), near)]


def saved(image: Image, kind: str, size: tuple[int, int] | None = None, **more: Any) -> Image:
    assert isinstance(image.source, bytes)
    picture = Pillow.open(io.BytesIO(image.source))
    file = io.BytesIO()
    (picture.resize(size, Pillow.Resampling.BICUBIC) if size else picture).save(file, kind, **more)
    return Image(file.getvalue(), f"x.{kind.lower()}")


def test_texts_that_differ_in_form_alone() -> None:
    rows = [
        row("a", "这个，能用吗？ OK"),
        row("b", "这个能用吗!ｏｋ"),
        row("c", "这个能用吗"),
        row("d", "这个能用吗ok", task="other"),
    ]
    assert groups(rows) == [["a", "b"]]


def test_pictures_that_were_saved_again(picture: Callable[..., Image]) -> None:
    first, second = picture(200, 300, seed=1), picture(200, 300, seed=2)
    rows = [
        row("png", "what?", first),
        row("jpeg", "what ?", saved(first, "JPEG", quality=60)),
        row("small", "what?", saved(first, "PNG", (100, 150))),
        row("wide", "what?", saved(first, "PNG", (150, 150))),
        row("said", "which?", first),
        row("second", "what?", second),
        row("twice", "what?", first, first),
    ]
    assert groups(rows) == [["png", "jpeg", "small"]]
    assert groups(rows, near=False) == []
    assert groups([*rows, row("equal", "what?", first)], near=False) == [["png", "equal"]]


def test_pages_that_differ_in_a_line_of_text() -> None:
    pages = []
    for top in (100, 140):
        page = Pillow.new("RGB", (360, 640), "white")
        page.paste("black", (30, top, 200, top + 14))
        file = io.BytesIO()
        page.save(file, "PNG")
        pages.append(Image(file.getvalue(), f"{top}.png"))
    assert groups([row("a", pages[0]), row("b", pages[1])]) == []


def test_alike_is_what_comparing_all_pairs_says() -> None:
    rng = np.random.default_rng(0)
    base_PS = rng.integers(60, 200, (12, 1024))
    many_PS = np.concatenate([base_PS + rng.integers(-6, 7, base_PS.shape) for _ in range(4)]).astype(np.uint8)
    first_P = alike(many_PS, np.ones(48))
    assert [len(set(first_P[at::12].tolist())) for at in range(12)] == [1] * 12
    assert len(set(first_P.tolist())) == 12


def test_groups_are_joined_by_twins() -> None:
    assert merge_groups([0, 1, 1, 3, 4], []) == [0, 1, 1, 3, 4]
    joined = merge_groups([0, 1, 1, 3, 4], [[0, 2], [3, 4]])
    assert [joined[at] == joined[0] for at in range(5)] == [True, True, True, False, False]
    assert joined[3] == joined[4]


def test_a_picture_that_is_none() -> None:
    with pytest.raises(MediaError, match="expected a picture"):
        groups([row("a", Image(b"no picture", "n.png"))])
