"""A small picture task that a tiny model can be trained on in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tuyi.task.catalog import TaskSet, parse_tasks
from tuyi.train.settings import TrainSettings


@pytest.fixture(scope="session")
def colours() -> TaskSet:
    """Which colour a picture has."""
    task = {"name": "colours", "labels": ["red", "green", "blue"], "budget": {"max_pixels": 3136, "max_tokens": 64}}
    return parse_tasks({"name": "colours", "tasks": [task]}, "colours")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per colour, eight noisy pictures in each."""
    import numpy as np
    from PIL import Image

    root, rng = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for channel, name in enumerate(("red", "green", "blue")):
        (root / name).mkdir()
        for index in range(8):
            pixels = rng.integers(0, 90, (56, 56, 3))
            pixels[..., channel] += 160
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{index}.png")
    return root


@pytest.fixture
def quick() -> dict[str, Any]:
    """Settings of a run of six steps."""
    return {"epochs": 2, "batch_rows": 8, "save_steps": 2, "lr": 2e-3, "tensorboard": False}


@pytest.fixture
def settings(quick: dict[str, Any]) -> TrainSettings:
    return TrainSettings(**quick)
