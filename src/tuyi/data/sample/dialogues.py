"""Customer dialogues: the deciding sentence among greetings, small talk and pictures."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

from tuyi.data.sample.variants import Part

__all__ = ["IMAGE", "Dialogue", "Wording", "frames", "goods", "intents", "small_talk", "wordings", "write_dialogue"]

IMAGE = "<image>"
"""Where a picture stands in the text."""


@cache
def _resource() -> Mapping[str, Any]:
    text = resources.files(__package__).joinpath("wordings.yaml").read_text(encoding="utf-8")
    value: Mapping[str, Any] = yaml.safe_load(text)
    return value


def intents() -> tuple[str, ...]:
    """The labels of ``www2025-intent`` that the sample uses."""
    return tuple(_resource()["intents"])


def goods() -> tuple[str, ...]:
    """Every name of goods that a sentence may carry, longest first."""
    names = {name for intent in _resource()["intents"].values() for name in intent["goods"]}
    return tuple(sorted(names, key=lambda name: (-len(name), name)))


def small_talk() -> tuple[str, ...]:
    """Every customer turn that is said whatever the label."""
    talk = _resource()["small_talk"]
    return (*talk["greet"], *talk["chat"], *talk["close"])


def frames() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What may stand before and after a deciding sentence."""
    value = _resource()["frames"]
    return tuple(value["before"]), tuple(value["after"])


@dataclass(frozen=True, slots=True)
class Wording:
    """A deciding sentence: its id, its text with ``{p}`` for the goods, and whether only a picture decides."""

    id: str
    text: str
    ambiguous: bool = False


@cache
def wordings(label: str, part: Part, ambiguous: bool) -> tuple[Wording, ...]:
    """The deciding sentences of a label in ``train`` or ``test``."""
    if not ambiguous:
        texts = _resource()["intents"][label][part]
        return tuple(Wording(f"{label}/{part}/{number}", text) for number, text in enumerate(texts))
    for group in _resource()["ambiguous"]:
        if label in group["labels"]:
            name = "+".join(group["labels"])
            return tuple(Wording(f"{name}/{part}/{number}", text, True) for number, text in enumerate(group[part]))
    return ()


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A dialogue as the data file has it, and what each of its pictures must show.

    Args:
        text: Turns ``用户: …`` and ``客服: …``, one a line, with ``<image>`` at the pictures' places.
        wording: The sentence that decides.
        shows: For each picture the intent whose evidence it shows, or None for neutral goods.
    """

    text: str
    wording: Wording
    shows: tuple[str | None, ...]


def write_dialogue(label: str, part: Part, ambiguous: bool, rng: random.Random) -> Dialogue:
    """Make up a dialogue that asks ``label``.

    Args:
        label: One of :func:`intents`.
        part: ``train`` or ``test``: whose sentences to take.
        ambiguous: Take a sentence that several labels share, and show the evidence for this one.
        rng: Source of every random choice.
    """
    wording = rng.choice(wordings(label, part, ambiguous))
    before, after = frames()
    names = _resource()["intents"][label]["goods"]
    sentence = rng.choice(before) + wording.text.replace("{p}", rng.choice(names)) + rng.choice(after)
    shows = _pictures(label, ambiguous, rng)
    turns: list[str] = []
    while not 2 <= len(turns) <= 8:
        turns = _opening(rng) + _core(sentence, len(shows), rng) + _ending(rng)
    return Dialogue("\n".join(turns), wording, shows)


def _pictures(label: str, ambiguous: bool, rng: random.Random) -> tuple[str | None, ...]:
    if ambiguous:
        shows: list[str | None] = [label] + [None] * rng.choice([0, 0, 0, 0, 1])
    else:
        shows = [None] * rng.choice([0, 1, 1, 1, 1, 2, 3])
        if len(shows) == 1 and rng.random() < 0.15:
            shows[0] = rng.choice(intents())
    rng.shuffle(shows)
    return tuple(shows)


def _core(sentence: str, images: int, rng: random.Random) -> list[str]:
    """The deciding sentence and the pictures, in the orders in which people send them."""
    style = rng.choice(["apart", "apart", "joined", "after"]) if images else "apart"
    if style == "joined":
        marks = IMAGE * images
        return [f"用户: {marks}{sentence}" if rng.random() < 0.5 else f"用户: {sentence}{marks}"]
    shown = [f"用户: {IMAGE}"] * images
    if images and rng.random() < 0.3:
        shown.append(f"客服: {rng.choice(_resource()['small_talk']['answer'])}")
    said = [f"用户: {sentence}"]
    return said + shown if style == "after" else shown + said


def _opening(rng: random.Random) -> list[str]:
    talk, turns = _resource()["small_talk"], []
    if rng.random() < 0.55:
        turns += [f"用户: {rng.choice(talk['greet'])}"]
        if rng.random() < 0.7:
            turns += [f"客服: {rng.choice(talk['welcome'])}"]
    if rng.random() < 0.2:
        turns += [f"用户: [订单卡片] 订单号 {rng.randrange(10**11, 10**12)}"]
    if rng.random() < 0.3:
        turns += [f"用户: {rng.choice(talk['chat'])}", f"客服: {rng.choice(talk['chat_answer'])}"]
    return turns


def _ending(rng: random.Random) -> list[str]:
    talk, turns = _resource()["small_talk"], []
    if rng.random() < 0.4:
        turns += [f"客服: {rng.choice(talk['answer'])}"]
        if rng.random() < 0.3:
            turns += [f"用户: {rng.choice(talk['chat'])}"]
    if rng.random() < 0.3:
        turns += [f"用户: {rng.choice(talk['close'])}"]
    return turns
