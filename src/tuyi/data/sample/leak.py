"""Proof that the held-out part of a sample is unseen: sentences, pictures, layouts, themes."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageStat

from tuyi.data.sample.dialogues import IMAGE, frames, goods, intents, small_talk, wordings
from tuyi.data.sample.pictures import Recipe
from tuyi.errors import FormatError, Place
from tuyi.task import load_tasks

__all__ = ["LeakReport", "core", "leak_check"]

_THUMB = (40, 64)
_REDRAWN = 4.0
"""Mean difference, of 255, up to which two thumbnails are the same drawing; JPEG alone makes about 1."""


@dataclass(frozen=True, slots=True)
class LeakReport:
    """What was compared, and every leak found.

    Args:
        train_rows: Training rows read.
        test_rows: Held-out rows read.
        sentences: Distinct deciding sentences of the held-out rows.
        pictures: Pictures hashed, both parts together.
        redrawn: Pictures drawn again from the manifest and compared with the file.
        leaks: One line each; empty where the held-out part is unseen.
    """

    train_rows: int
    test_rows: int
    sentences: int
    pictures: int
    redrawn: int
    leaks: tuple[str, ...]

    @property
    def clean(self) -> bool:
        """Whether nothing of the held-out part was found in training."""
        return not self.leaks

    def __str__(self) -> str:
        head = (
            f"{self.test_rows} test rows against {self.train_rows} training rows: {self.sentences} deciding sentences, "
            f"{self.pictures} pictures hashed, {self.redrawn} redrawn from their layout; "
        )
        return head + ("no leak" if self.clean else "\n  ".join([f"{len(self.leaks)} leaks", *self.leaks]))


def core(sentence: str) -> str:
    """A sentence without what varies at no cost: goods, politeness, particles, punctuation, width, case."""
    text = unicodedata.normalize("NFKC", sentence.replace(IMAGE, "")).casefold().strip()
    for name in goods():
        text = text.replace(unicodedata.normalize("NFKC", name).casefold(), "")
    return re.sub(r"[\W_呀呢啊哦吗嘛吧的了哈]", "", _openings().sub("", text))


@cache
def _openings() -> re.Pattern[str]:
    """Any number of polite openings at the start of a sentence."""
    openings = (unicodedata.normalize("NFKC", before).casefold() for before in frames()[0] if before)
    return re.compile(f"^(?:{'|'.join(map(re.escape, openings))})+")


def leak_check(out: Path, *, every: int = 8) -> LeakReport:
    """Compare the held-out rows of a written sample with its training rows.

    Sentences are read from the dialogues and pictures hashed from their files. That each picture has the layout
    which the manifest names is proved by drawing it again: all held-out ones, and every ``every``-th of training.

    Args:
        out: Folder that :func:`tuyi.data.sample.write_sample` wrote.
        every: Redraw one in so many training pictures.

    Raises:
        FormatError: A file of the sample is missing or not JSON, or the manifest lacks a row or picture.
    """
    train, test, manifest = (_load(out / name) for name in ("train.json", "test.json", "manifest.json"))
    _complete(out, [*train, *test], manifest)
    sentences, leaks = _sentence_leaks(train, test)
    leaks += _wording_leaks(train, test, manifest)
    hashes, more = _picture_leaks(out / "images", train, test)
    leaks += more + _layout_leaks(train, test, manifest)
    names = [*_pictures(test), *list(_pictures(train))[::every]]
    leaks += [line for name in names if (line := _redraw(out / "images" / name, manifest))]
    return LeakReport(len(train), len(test), sentences, hashes, len(names), tuple(leaks))


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FormatError("expected a file of the sample, found none; write the sample again", Place(path)) from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FormatError(f"expected JSON as the sample is written, found: {error}", Place(path)) from error


def _complete(out: Path, rows: list[Any], manifest: Mapping[str, Any]) -> None:
    place = Place(out / "manifest.json")
    for row in rows:
        if row["id"] not in manifest["rows"]:
            raise FormatError(f"expected every row of the sample, found none with id {row['id']}", place)
        for name in row["image"]:
            if name not in manifest["pictures"]:
                raise FormatError(f"expected every picture of the sample, found no {name}", place)
            if not (out / "images" / name).is_file():
                raise FormatError("expected a picture of the sample, found none", Place(out / "images" / name))


def _said(row: Mapping[str, Any]) -> Iterator[str]:
    """The core of each customer turn of a dialogue; nothing for a row of another task."""
    head, tail = _asking()
    text = str(row["instruction"])
    if text.startswith(head):
        for turn in text.removeprefix(head).removesuffix(tail).split("\n"):
            if turn.startswith("用户:") and (said := core(turn.removeprefix("用户:"))):
                yield said


@cache
def _asking() -> tuple[str, str]:
    return load_tasks("www2025")["www2025-intent"].wording


def _sentence_leaks(train: list[Any], test: list[Any]) -> tuple[int, list[str]]:
    idle = {core(talk) for talk in small_talk()}
    seen = "\n".join(sorted({said for row in train for said in _said(row)}))
    deciding: dict[str, str] = {}
    leaks = []
    for row in test:
        told = [said for said in _said(row) if said not in idle and not said.startswith("订单卡片")]
        if not told and str(row["instruction"]).startswith(_asking()[0]):
            leaks.append(f"test row {row['id']}: no customer turn but small talk, so nothing in its text is compared")
        deciding |= {said: str(row["id"]) for said in told if said not in deciding}
    leaks += [f"test row {id_}: sentence {said!r} is in training" for said, id_ in deciding.items() if said in seen]
    return len(deciding), leaks


def _wording_leaks(train: list[Any], test: list[Any], manifest: Mapping[str, Any]) -> list[str]:
    """Rows that do not say what the manifest names, and wordings named on both sides."""
    known = {
        wording.id: core(wording.text.replace("{p}", ""))
        for label in intents() for part in ("train", "test") for ambiguous in (False, True)
        for wording in wordings(label, part, ambiguous)
    }  # fmt: skip
    used: list[set[str]] = []
    leaks = []
    for rows in (train, test):
        used.append(set())
        for row in rows:
            name = manifest["rows"][row["id"]]["wording"]
            if name is not None and known.get(name) not in set(_said(row)):
                leaks.append(f"row {row['id']}: the manifest names wording {name}, the dialogue does not say it")
            used[-1] |= {name} - {None}
    return leaks + [f"wording {name} is on both sides" for name in sorted(used[0] & used[1])]


def _pictures(rows: list[Any]) -> Iterator[str]:
    return (name for row in rows for name in row["image"])


def _picture_leaks(images: Path, train: list[Any], test: list[Any]) -> tuple[int, list[str]]:
    sides: list[dict[str, str]] = []
    for rows in (train, test):
        sides.append({hashlib.sha256((images / name).read_bytes()).hexdigest(): name for name in _pictures(rows)})
    both = sorted(sides[0].keys() & sides[1].keys())
    leaks = [f"picture {sides[1][key]} of the test is {sides[0][key]} of training" for key in both]
    return sum(len(side) for side in sides), leaks


def _layout_leaks(train: list[Any], test: list[Any], manifest: Mapping[str, Any]) -> list[str]:
    leaks = []
    for kind in ("layout", "theme"):
        sides = [{manifest["pictures"][name][kind] for name in _pictures(rows)} for rows in (train, test)]
        leaks += [f"{kind} {name} is on both sides" for name in sorted(sides[0] & sides[1])]
    return leaks


def _redraw(path: Path, manifest: Mapping[str, Any]) -> str | None:
    """What is wrong where the file is not the picture that the manifest describes."""
    recipe = Recipe(**manifest["pictures"][path.name])
    with Image.open(path) as found:
        expected = recipe.draw()
        if found.size == expected.size:
            pair = [picture.convert("RGB").resize(_THUMB, Image.Resampling.BOX) for picture in (found, expected)]
            if sum(ImageStat.Stat(ImageChops.difference(*pair)).mean) / 3 <= _REDRAWN:
                return None
    return f"picture {path.name} is not the drawing of {recipe.layout} that the manifest names"
