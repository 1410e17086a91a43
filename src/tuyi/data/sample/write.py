"""Write the built-in sample: dialogues and drawn pages in the layout of the WWW2025 files."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tuyi.data.sample.dialogues import IMAGE, intents, write_dialogue
from tuyi.data.sample.pictures import Recipe, make_recipe
from tuyi.data.sample.scenes import SCENES
from tuyi.data.sample.variants import Part
from tuyi.errors import ConfigError, OutputError
from tuyi.task import TaskSet, load_tasks

__all__ = ["SampleInfo", "write_sample"]

_AMBIGUOUS = (11, 25)
"""Of each label's dialogues, so many in so many can only be told by their picture."""


@dataclass(frozen=True, slots=True)
class SampleInfo:
    """Where a written sample lies, and what is in it.

    Args:
        train: Labelled training rows.
        test: Held-out rows with an empty ``output``.
        labelled: The same held-out rows with their labels, for judging.
        images: Folder of the pictures.
        manifest: For each row its wording and pictures, for each picture its recipe.
        train_rows: Number of training rows.
        test_rows: Number of held-out rows.
        pictures: Number of pictures.
        labels: The labels used, by task name.
    """

    train: Path
    test: Path
    labelled: Path
    images: Path
    manifest: Path
    train_rows: int
    test_rows: int
    pictures: int
    labels: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class _Row:
    task: str
    label: str
    content: str
    wording: str | None
    ambiguous: bool
    pictures: tuple[Recipe, ...]


def write_sample(out: Path, *, seed: int = 0, train_rows: int = 2400, test_rows: int = 480) -> SampleInfo:
    """Write a sample of both tasks: training rows, held-out rows with and without labels, pictures, a manifest.

    Labels are balanced. Sentences, page layouts, colour themes and photographed things of the held-out rows are
    none of those in training; :func:`tuyi.data.sample.leak_check` proves it from the files.

    Args:
        out: Folder to write; made where missing, empty otherwise.
        seed: The same seed writes the same rows and pictures.
        train_rows: Training rows, both tasks together.
        test_rows: Held-out rows, both tasks together.

    Raises:
        OutputError: ``out`` has something in it, or cannot be written.
        ConfigError: Fewer rows than there are labels.

    Source: file layout of the WWW2025 multimodal dialogue challenge (Tianchi 532277).
    """
    labels = {"www2025-intent": intents(), "www2025-scene": tuple(SCENES)}
    least = sum(len(names) for names in labels.values())
    for name, rows in (("train_rows", train_rows), ("test_rows", test_rows)):
        if rows < least:
            raise ConfigError(f"{name}: expected at least {least}, one a label, found {rows}")
    info = SampleInfo(
        out / "train.json", out / "test.json", out / "test_labelled.json", out / "images", out / "manifest.json",
        train_rows, test_rows, 0, labels,
    )  # fmt: skip
    try:
        if out.exists() and any(out.iterdir()):
            raise OutputError(
                f"{out}: expected a new or empty folder for the sample; remove it or choose another --out"
            )
        info.images.mkdir(parents=True)
        return _write(info, seed)
    except OSError as error:
        raise OutputError(f"{out}: the sample cannot be written: {error}") from error


def _write(info: SampleInfo, seed: int) -> SampleInfo:
    tasks = load_tasks("www2025")
    rng = random.Random(f"sample {seed}")
    manifest: dict[str, Any] = {"seed": seed, "rows": {}, "pictures": {}}
    files: dict[Part, list[dict[str, Any]]] = {"train": [], "test": []}
    counts: tuple[tuple[Part, int], ...] = (("train", info.train_rows), ("test", info.test_rows))
    for part, count in counts:
        rows = list(_rows(info.labels, part, count, rng))
        rng.shuffle(rows)
        for row in rows:
            id_ = f"{len(manifest['rows']):06d}"
            names = [_save(info.images, id_, at, recipe, manifest) for at, recipe in enumerate(row.pictures)]
            manifest["rows"][id_] = {"part": part, "task": row.task, "wording": row.wording, "ambiguous": row.ambiguous}
            files[part].append(_as_file_row(tasks, id_, row, names))
    _dump(info.train, files["train"])
    _dump(info.test, [{**row, "output": ""} for row in files["test"]])
    _dump(info.labelled, files["test"])
    _dump(info.manifest, manifest)
    return SampleInfo(
        info.train, info.test, info.labelled, info.images, info.manifest,
        info.train_rows, info.test_rows, len(manifest["pictures"]), info.labels,
    )  # fmt: skip


def _rows(labels: Mapping[str, tuple[str, ...]], part: Part, count: int, rng: random.Random) -> Iterable[_Row]:
    """``count`` rows, half of them of each task, labels in turn."""
    for at in range(count):
        task, number = ("www2025-intent", "www2025-scene")[at % 2], at // 2
        label = labels[task][number % len(labels[task])]
        if task == "www2025-scene":
            yield _Row(task, label, IMAGE, None, False, (make_recipe("scene", label, part, rng),))
            continue
        some, of = _AMBIGUOUS
        ambiguous = number // len(labels[task]) * some % of < some
        dialogue = write_dialogue(label, part, ambiguous, rng)
        pictures = tuple(make_recipe("photo", shown, part, rng) for shown in dialogue.shows)
        yield _Row(task, label, dialogue.text, dialogue.wording.id, ambiguous, pictures)


def _as_file_row(tasks: TaskSet, id_: str, row: _Row, names: list[str]) -> dict[str, Any]:
    head, tail = tasks[row.task].wording
    return {"id": id_, "instruction": head + row.content + tail, "input": "", "output": row.label, "image": names}


def _save(images: Path, id_: str, at: int, recipe: Recipe, manifest: dict[str, Any]) -> str:
    name = f"{id_}-{at}.jpg"
    recipe.draw().save(images / name, quality=85)
    manifest["pictures"][name] = asdict(recipe)
    return name


def _dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")
