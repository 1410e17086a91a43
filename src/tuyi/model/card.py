"""The model card: what an exported model decides, how well, how it is asked and served; as the hub's README.md."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuyi.model.folder import FolderInfo, SeenRows, versions
from tuyi.model.load import Frontend
from tuyi.model.measured import Measured, MeasuredTask
from tuyi.model.peers import Asking, Serving, pixels
from tuyi.model.tiny import NAMES
from tuyi.task.task import Task
from tuyi.templates import templates

__all__ = ["Card", "render_card"]

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_PUNCTUATION = re.compile(r"([\\`*_{}\[\]<>#|~!&$])")
_CONFUSIONS = 5
_SETTINGS = {
    "method": "method",
    "epochs": "epochs",
    "max_steps": "most steps",
    "lr": "learning rate",
    "schedule": "schedule",
    "batch_rows": "rows a step",
    "batch_tokens": "tokens a step",
    "precision": "precision",
    "label_smoothing": "label smoothing",
    "seed": "seed",
}


@dataclass(frozen=True, slots=True)
class Card:
    """What a card is made from.

    Args:
        name: Of the exported folder.
        frontend: The model, without its weights.
        info: What it remembers; None where no task is known.
        base: What it was made from; None where nobody knows.
        dtype: Of its weights.
        measured: An evaluation of it.
    """

    name: str
    frontend: Frontend
    info: FolderInfo | None
    base: str | None
    dtype: str
    measured: Measured | None = None


def render_card(card: Card) -> str:
    """The text of ``README.md``: front matter as the hub reads it, then Markdown."""
    import yaml

    environment = templates("tuyi.model", is_html=False)
    environment.filters |= {"md": _markdown, "fence": _fence, "thousands": "{:,}".format, "three": "{:.3f}".format}
    environment.filters["share"] = lambda part, whole: f"{part:,} ({part / whole:.0%})"
    base = card.base if card.base and _is_hub_id(card.base) else None
    front = {
        **({"base_model": base} if base else {}),
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["tuyi", str(card.frontend.config.model_type)],
    }
    info = card.info
    tasks = [_task(task, card) for task in info.tasks] if info else []
    text = environment.get_template("card.md.j2").render(
        name=card.name,
        base=base or _told(card.base),
        family=card.frontend.config.model_type,
        dtype=card.dtype,
        tasks=tasks,
        serving=Serving(card.name, info, [one["asking"] for one in tasks]) if info else None,
        caps=pixels(info.tasks) if info else None,
        same_caps=info is not None and len({_caps(task) for task in info.tasks}) == 1,
        measured=card.measured,
        measured_on=Path(card.measured.made.data).name if card.measured else "",
        measured_model=Path(str(card.measured.made.run.get("model") or "")).name if card.measured else "",
        validated=_pairs({key: f"{value:.3f}" for key, value in _numbers(info.scores)}) if info else "",
        training=list(_training(info.settings)) if info else [],
        trained_with=_pairs(info.versions) if info else "",
        exported_with=_pairs(versions()),
    )
    return f"---\n{yaml.safe_dump(front, allow_unicode=True, sort_keys=False)}---\n\n{text}\n"


def _is_hub_id(name: str) -> bool:
    return _HUB_ID.fullmatch(name) is not None and not Path(name).exists()


def _told(base: str | None) -> str:
    """A base model that the hub does not know, for people; of a folder its name alone."""
    if base is None:
        return ""
    return base if base in NAMES else Path(base).name


def _task(task: Task, card: Card) -> dict[str, Any]:
    """All that the card says of one task."""
    assert card.info is not None
    rows = {part: by_task[task.name] for part, by_task in card.info.data.items() if task.name in by_task}
    train = rows.get("train")
    asking = Asking(task, card.frontend.tokenizer, has_pictures=train is None or train.most_pictures > 0)
    scores = card.measured.tasks.get(task.name) if card.measured else None
    return {
        "task": task,
        "labels": task.labels.labels if task.labels else (),
        "asking": asking,
        "rows": rows,
        "scores": scores,
        "confidence": _confidence(card.info.calibration.get(task.name), scores),
        "limits": list(_limits(task, train, scores)),
    }


def _confidence(kept: Mapping[str, Any] | None, scores: MeasuredTask | None) -> str:
    """How far its confidence can be believed."""
    if kept:
        fitted = f"temperature {kept['temperature']:.3f}" + (
            f", fitted on {kept['rows']:,} rows" if "rows" in kept else ""
        )
        before, after = kept.get("ece_before"), kept.get("ece_after")
        if before is None or after is None:
            return fitted
        return f"{fitted}; expected calibration error {before:.3f} without it, {after:.3f} with it"
    if scores is not None and scores.calibration is not None:
        return f"no temperature is kept; expected calibration error {scores.calibration.before.ece:.3f}"
    return "not measured"


def _pairs(values: Mapping[str, str]) -> str:
    return ", ".join(f"{_markdown(name)} {_markdown(value)}" for name, value in values.items())


def _confusions(scores: MeasuredTask) -> list[str]:
    """The labels that are most often taken for another one."""
    worst = sorted((row for row in scores.labels if row.confused_with), key=lambda row: -row.confused)
    return [
        f"{_markdown(row.label)} for {_markdown(row.confused_with or '')} ({row.confused} of {row.support} rows)"
        for row in worst[:_CONFUSIONS]
    ]


def _limits(task: Task, train: SeenRows | None, scores: MeasuredTask | None) -> Iterator[str]:
    """What the counts say that it cannot be trusted with."""
    if task.labels is not None:
        yield "It always answers one of its labels, also for a row that none of them fits."
    if train is not None:
        if never := [_markdown(label) for label, rows in train.labels.items() if not rows]:
            yield f"Never seen in training: {', '.join(never)}."
        shown = [kind for kind, rows in (("pictures", train.with_pictures), ("videos", train.with_videos)) if not rows]
        if shown:
            yield f"No training row showed {' or '.join(shown)}."
    if scores is None:
        yield "It was not measured on test rows."
    elif untested := [_markdown(row.label) for row in scores.labels if not row.support]:
        yield f"Not measured, since no test row has it: {', '.join(untested)}."
    if scores is not None and (confused := _confusions(scores)):
        yield f"Labels it takes for another one most often: {'; '.join(confused)}."
    budget = task.budget
    yield (
        f"A row has at most {budget.max_tokens:,} tokens, a picture {budget.max_pixels:,} pixels. tuyi shrinks the "
        "pictures of a longer row and then leaves out its oldest turns; other servers refuse it."
    )


def _caps(task: Task) -> tuple[int, int]:
    return task.budget.min_pixels, task.budget.max_pixels


def _numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, int | float):
            yield name, value


def _training(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The settings that people ask for first; what is not there is left out."""
    for key, name in _SETTINGS.items():
        if settings.get(key) is not None:
            yield name, str(settings[key])
    lora = settings.get("lora")
    if settings.get("method") not in (None, "full") and isinstance(lora, Mapping):
        yield "adapter", ", ".join(f"{key} {value}" for key, value in lora.items())
    freeze = settings.get("freeze")
    if isinstance(freeze, Mapping):
        yield "frozen", ", ".join(part for part, is_frozen in freeze.items() if is_frozen) or "nothing"


def _markdown(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return _PUNCTUATION.sub(r"\\\1", " ".join(str(text).split()))


def _fence(text: str, language: str = "") -> str:
    """A code block; its fence is longer than any inside."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}{language}\n{text.rstrip(chr(10))}\n{ticks}"
