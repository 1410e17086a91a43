"""Servers with the tiny model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from live_server import Running, running

from tuyi.data.example import Example, Image, Text
from tuyi.serve.app import create_app
from tuyi.serve.opening import Served
from tuyi.serve.settings import ServeSettings


@pytest.fixture(scope="session")
def served(twins: Any) -> Served:
    twin = twins("qwen2_vl")
    models = {task.name: twin.model for task in twin.encoder.tasks}
    return Served("small", twin.encoder, None, models, pack_tokens=4096, cache_tokens=8192, features=256, created=1)


@pytest.fixture
def serving(served: Served) -> Iterator[Callable[..., Running]]:
    """Starts servers with settings of their own."""
    with contextlib.ExitStack() as stack:
        yield lambda **settings: stack.enter_context(running(create_app(served, ServeSettings(**settings))))


@pytest.fixture(scope="module")
def server(served: Served) -> Iterator[Running]:
    """A server with the settings that everybody has."""
    with running(create_app(served, ServeSettings(workers=2))) as one:
        yield one


@pytest.fixture(scope="session")
def mixed(picture: Callable[..., Image]) -> list[Example]:
    """Rows of two tasks with no, one and two pictures."""
    rows = []
    for number in range(24):
        pictures = [picture(40 + 12 * (number % 7), 60, seed=2 * number + index) for index in range(number % 3)]
        content = (Text("你好 " * (number % 5)), *pictures, Text("what?"))
        rows.append(Example(id=f"r{number}", content=content, task=["colour", "shape"][number % 2]))
    return rows
