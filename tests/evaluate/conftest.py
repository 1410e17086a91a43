"""A small judged case: two tasks, drawn pictures, some mistakes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from tuyi.data.example import Example, Image, Text
from tuyi.errors import Place
from tuyi.predict.prediction import Prediction

COLOURS = ("红色", "绿色", "蓝色（深）")
MOODS = ("喜欢", "讨厌")


@dataclass
class Case:
    """Rows with their predictions; ``write`` puts the predictions into a file."""

    folder: Path
    examples: list[Example] = field(default_factory=list)
    predictions: list[Prediction] = field(default_factory=list)

    def write(self, predictions: list[Prediction] | None = None, name: str = "pred.jsonl") -> Path:
        file = self.folder / name
        lines = [one.to_json() for one in (self.predictions if predictions is None else predictions)]
        file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return file


def predicted(id: str, task: str, labels: tuple[str, ...], label: str, sure: float, **changes: object) -> Prediction:
    rest = (1 - sure) / (len(labels) - 1)
    probabilities = {name: sure if name == label else rest for name in labels}
    logprobs = {name: float(np.log(value)) for name, value in probabilities.items()}
    return Prediction(id, task, label, logprobs, probabilities, **changes)  # type: ignore[arg-type]


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """20 rows of task ``colour`` (4 wrong) and 10 of ``mood`` (2 wrong)."""
    rng = np.random.default_rng(0)
    found = Case(tmp_path)
    for n in range(30):
        task, labels = ("colour", COLOURS) if n < 20 else ("mood", MOODS)
        gold = labels[n % len(labels)]
        label = labels[(n + 1) % len(labels)] if n % 5 == 0 else gold
        file = tmp_path / f"{n}.png"
        Pillow.fromarray(rng.integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(file)
        text = f"用户: 你好 {n}\n客服: 亲，在的\n用户: "
        content = (Text(text), Image(file, file.name)) if task == "mood" else (Image(file, file.name),)
        example = Example(str(n), content, task=task, label=gold, place=Place(tmp_path / "data.json", n + 1))
        found.examples.append(example)
        found.predictions.append(predicted(str(n), task, labels, label, float(rng.uniform(0.6, 0.97))))
    return found


@pytest.fixture
def predict() -> Callable[..., Prediction]:
    """Makes a prediction with one likely label."""
    return predicted
