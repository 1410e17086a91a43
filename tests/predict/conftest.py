"""Rows that several tests of prediction label."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from PIL import Image as Pillow

from tuyi.data.example import Example, Image, Text


@pytest.fixture(scope="session")
def mixed_rows(picture: Callable[..., Image]) -> Callable[[int], list[Example]]:
    """Makes rows of two tasks with no, one and two pictures; some lengths are equal."""

    def make(count: int) -> list[Example]:
        rows = []
        for number in range(count):
            pictures = [picture(40 + 12 * (number % 7), 60, seed=2 * number + index) for index in range(number % 3)]
            content = (Text("你好 " * (number % 5)), *pictures, Text("what?"))
            rows.append(Example(id=f"r{number}", content=content, task=["colour", "shape"][number % 2]))
        return rows

    return make


@pytest.fixture(scope="session")
def damaged_picture(picture: Callable[..., Image]) -> Image:
    """Has a whole header and an end, and names a Huffman table that it has not."""
    file = io.BytesIO()
    Pillow.open(io.BytesIO(picture(90, 80, seed=77).source)).save(file, "JPEG")  # type: ignore[arg-type]
    before, marker, scan = file.getvalue().partition(b"\xff\xda\x00\x0c\x03")
    tables = b"\x01\x33\x02\x33\x03\x33"
    return Image(before + marker + tables + scan[len(tables) :], "broken.jpg")


@pytest.fixture(scope="session")
def damaged(damaged_picture: Image) -> Callable[..., Example]:
    """Makes a row with such a picture."""

    def make(name: str = "bad") -> Example:
        return Example(id=name, content=(damaged_picture, Text("what?")), task="shape")

    return make
