"""What one half of a row can tell: classifiers that see only the text, or only the pictures.

They are trained on the training rows of the same sample, so that a reader of the report sees whether a model that is
given both halves uses both.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuyi.data.example import Example, Image, Part, Text
from tuyi.task.catalog import TaskSet
from tuyi.task.task import Task

__all__ = ["one_sided_scores"]

_SIDE = (14, 24)  # width and height of the thumbnails; a phone's shape


def one_sided_scores(train: Sequence[Example], test: Sequence[Example], tasks: TaskSet) -> dict[str, dict[str, float]]:
    """Weighted F1 of text-only and picture-only classifiers, by task and name.

    Args:
        train: Labelled rows to learn from.
        test: Labelled rows to score.
        tasks: Their tasks.
    """
    scores: dict[str, dict[str, float]] = {}
    for task in tasks:
        mine = [[row for row in rows if tasks.of(row).name == task.name] for rows in (train, test)]
        if all(mine):
            scores[task.name] = {
                "text only": _score(_text_model(), *(_labelled(rows, task, _text) for rows in mine)),
                "picture only": _score(_picture_model(), *(_labelled(rows, task, _pixels) for rows in mine)),
            }
    return scores


def _score(model: Any, train: tuple[Any, list[str]], test: tuple[Any, list[str]]) -> float:
    from sklearn.metrics import f1_score

    guess = model.fit(*train).predict(test[0])
    return float(f1_score(test[1], guess, average="weighted", zero_division=0))


def _labelled(rows: Sequence[Example], task: Task, see: Any) -> tuple[list[Any], list[str]]:
    assert task.labels is not None
    shown = [[part for turn in task.ask(row).turns for part in turn] for row in rows]
    return [see(parts) for parts in shown], [task.labels.canonical(row.label or "") for row in rows]


def _text(parts: Sequence[Part]) -> str:
    return "".join(part.text if isinstance(part, Text) else "▣" for part in parts)


def _pixels(parts: Sequence[Part]) -> NDArray[np.float32]:
    """Mean thumbnail of the row's pictures; black where it has none."""
    small = [_thumbnail(part.source) for part in parts if isinstance(part, Image) and isinstance(part.source, Path)]
    mean: NDArray[np.float32] = np.zeros((_SIDE[1], _SIDE[0], 3), np.float32)
    for picture in small:
        mean += picture / len(small)
    return mean.ravel()


def _thumbnail(file: Path) -> NDArray[np.float32]:
    from PIL import Image as Pillow

    with Pillow.open(file) as picture:
        picture.draft("RGB", (4 * _SIDE[0], 4 * _SIDE[1]))  # JPEG decodes to a fraction of its size at once
        return np.asarray(picture.resize(_SIDE), np.float32) / np.float32(255)


def _text_model() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    return make_pipeline(TfidfVectorizer(analyzer="char", ngram_range=(1, 3)), LogisticRegression(C=30, max_iter=500))


def _picture_model() -> Any:
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(PCA(64, random_state=0), StandardScaler(), LogisticRegression(max_iter=500))
