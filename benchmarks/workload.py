"""Rows with the shapes of the WWW2025 challenge: prompt lengths, dialogue turns, picture sizes, bytes a picture.

The shapes are those of the challenge's 1,000 training rows (``shapes.json``); texts and pictures are made up. Run
alone it writes such a data set::

    python benchmarks/workload.py FOLDER --rows 256
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from models import make_model
from pictures import draw_screenshot, save_screenshot
from tuyi.data.sample.dialogues import goods, intents, small_talk, wordings
from tuyi.task import load_tasks

__all__ = ["Shape", "draw_shapes", "kept_or_temporary", "make_workload", "texts"]

SCENE_SHARE = 0.7
"""Share of scene rows, as in the challenge's training set."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One row's shape.

    Args:
        task: ``scene`` or ``intent``.
        prompt_chars: Characters of the whole prompt.
        turns: Turns of the dialogue; 0 for a scene.
        pictures: (width, height, bytes of the file) of each picture.
    """

    task: str
    prompt_chars: int
    turns: int
    pictures: tuple[tuple[int, int, int], ...]


@contextmanager
def kept_or_temporary(folder: Path | None) -> Iterator[Path]:
    """The folder that a benchmark works in: the one that was named, else one that goes with it."""
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="tuyi-bench-") as made:
        yield Path(made)


def draw_shapes(
    rows: int, seed: int = 0, *, tasks: Sequence[str] = ("scene", "intent"), max_picture_pixels: int | None = None
) -> list[Shape]:
    """Shapes of ``rows`` rows, seven scenes to three dialogues, in random order.

    Args:
        rows: How many; over the number of known shapes they repeat, the texts and pictures made of them do not.
        seed: Of the draw.
        tasks: Which tasks to take.
        max_picture_pixels: Pictures above this many pixels are drawn smaller, for machines without a GPU.
    """
    known, rng = _known(), random.Random(seed)
    drawn: list[Shape] = []
    for task in tasks:
        share = 1.0 if len(tasks) == 1 else SCENE_SHARE if task == "scene" else 1 - SCENE_SHARE
        wanted = rows - len(drawn) if task == tasks[-1] else round(share * rows)
        pool: list[list[object]] = []
        while len(pool) < wanted:
            pool += rng.sample(known[task], len(known[task]))
        for chars, turns, pictures in pool[:wanted]:
            sizes = tuple(_shrunk(*picture, max_picture_pixels) for picture in pictures)
            drawn.append(Shape(task, chars, turns, sizes))
    rng.shuffle(drawn)
    return drawn


def _shrunk(width: int, height: int, file_bytes: int, most: int | None) -> tuple[int, int, int]:
    scale = min(1.0, math.sqrt(most / (width * height))) if most else 1.0
    return max(28, int(width * scale)), max(28, int(height * scale)), int(file_bytes * scale**2)


def make_workload(
    folder: Path,
    rows: int,
    seed: int = 0,
    *,
    tasks: Sequence[str] = ("scene", "intent"),
    max_picture_pixels: int | None = None,
    copies: int = 1,
    labelled: bool = False,
) -> Path:
    """Write rows in the challenge's form; all pictures differ.

    Args:
        folder: Receives ``test.json``, or ``train.json`` where ``labelled``, and ``images/``.
        rows, seed, tasks, max_picture_pixels: As for :func:`draw_shapes`.
        copies: How many times each row stands in the file, under ids of its own, with the same pictures.
        labelled: Whether rows have labels, drawn as often as in the challenge; texts and pictures stay the same.

    Returns:
        The data file.
    """
    shapes = draw_shapes(rows, seed, tasks=tasks, max_picture_pixels=max_picture_pixels)
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    jobs = [(f"{row}_{index}", size) for row, shape in enumerate(shapes) for index, size in enumerate(shape.pictures)]
    seeds = random.Random(seed).sample(range(2**32), len(jobs))
    draw_screenshot(64, 64, 2048, 0)  # makes the tiles that all threads share
    # Pillow lets go of the interpreter lock while it pastes and compresses
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        names = dict(
            zip(
                [stem for stem, _ in jobs],
                pool.map(lambda job: save_screenshot(images, *job[0], job[1]), zip(jobs, seeds)),
            )
        )
    rng, draw = random.Random(seed), random.Random(seed)
    written = [
        {
            "id": f"{row}" if copies == 1 else f"{row}.{copy}",
            "instruction": text,
            "input": "",
            "output": label,
            "image": [names[f"{row}_{index}"] for index in range(len(shape.pictures))],
        }
        for row, (shape, text, label) in enumerate(
            [(shape, _prompt(shape, rng), _label(shape, draw) if labelled else "") for shape in shapes]
        )
        for copy in range(copies)
    ]
    file = folder / ("train.json" if labelled else "test.json")
    file.write_text(json.dumps(written, ensure_ascii=False), encoding="utf-8")
    return file


def _prompt(shape: Shape, rng: random.Random) -> str:
    head, tail = _wording()[shape.task]
    if shape.task == "scene":
        return f"{head}<image>{tail}"
    turns = max(1, shape.turns)
    room = max(0, shape.prompt_chars - len(head) - len(tail))
    marks = [rng.randrange(0, turns, 2) for _ in shape.pictures]
    lines = []
    for turn in range(turns):
        start = f"{'用户' if turn % 2 == 0 else '客服'}: "
        length = room * (turn + 1) // turns - room * turn // turns - len(start) - 1
        lines.append(start + "<image>" * marks.count(turn) + _chatter(max(0, length), rng))
    return head + "\n".join(lines) + tail


def _chatter(length: int, rng: random.Random) -> str:
    """``length`` characters of shop talk."""
    text = ""
    while len(text) < length:
        text += rng.choice(_sentences()).replace("{p}", rng.choice(goods())) + "，"
    return text[:length]


def _label(shape: Shape, draw: random.Random) -> str:
    counts: dict[str, int] = _known()["labels"][shape.task]
    return draw.choices(list(counts), list(counts.values()))[0]


@cache
def _known() -> dict[str, Any]:
    known: dict[str, Any] = json.loads(Path(__file__).with_name("shapes.json").read_text(encoding="utf-8"))
    return known


@cache
def _sentences() -> tuple[str, ...]:
    asked = [item.text for label in intents() for part in ("train", "test") for item in wordings(label, part, False)]
    return (*small_talk(), *asked)


@cache
def _wording() -> dict[str, tuple[str, str]]:
    """The challenge's wording before and after the content, by task."""
    return {task.name.removeprefix("www2025-"): task.wording for task in load_tasks("www2025")}


def texts() -> list[str]:
    """What a tokenizer for these rows is learned from."""
    labels = [label for task in load_tasks("www2025") if task.labels for label in task.labels.labels]
    wording = [text for pair in _wording().values() for text in pair]
    return [*wording, *_sentences(), *goods(), *(label.definition for label in labels)]


def main() -> None:
    """Write a data set, and with ``--model`` a model folder beside it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--labelled", action="store_true", help="rows to train on")
    parser.add_argument("--model", choices=("tiny", "2b", "7b"))
    parser.add_argument("--device", default="cpu", help="where the model's weights are drawn")
    args = parser.parse_args()
    print(make_workload(args.folder, args.rows, args.seed, labelled=args.labelled))
    if args.model:
        print(make_model(args.folder / args.model, args.model, texts(), device=args.device))


if __name__ == "__main__":
    main()
