"""A predictions file that an interrupted run left: whose it is, and what it has already."""

from __future__ import annotations

import json
import os
import reprlib
from pathlib import Path
from typing import Any

from tuyi.errors import OutputError
from tuyi.model.folder import FolderInfo, temperature, versions
from tuyi.predict.prediction import read_predictions, read_run, run_file
from tuyi.predict.settings import PredictSettings
from tuyi.task.catalog import TaskSet

__all__ = ["cut_partial_line", "resume", "run_record"]


def run_record(
    model: str, data: str, tasks: TaskSet, info: FolderInfo | None, settings: PredictSettings
) -> dict[str, Any]:
    """How a predictions file was made; what must not change when a run goes on."""
    return {
        "model": model,
        "data": data,
        "tasks": tasks.model_dump(mode="json"),
        "temperature": {one.name: temperature(info, one.name) for one in tasks},
        "settings": settings.model_dump(mode="json"),
        "versions": versions(),
    }


_FIXED = ("model", "data", "tasks", "temperature")
_FIXED_SETTINGS = ("engine", "precision", "draft")  # these change answers, if little


def resume(out: Path, run: dict[str, Any]) -> set[str]:
    """Ids that ``out`` has already; a line that was cut short is removed.

    Raises:
        OutputError: ``out`` was made by another run.
        FormatError: ``out`` or the description beside it is broken.
    """
    record = run_file(out)
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(run, ensure_ascii=False, indent=1), encoding="utf-8")
        return set()
    if not record.exists():
        raise OutputError(f"{out} exists and has no {record.name} beside it; choose another --out or remove it")
    earlier = read_run(out)
    for key in _FIXED:
        if earlier.get(key) != run[key]:
            raise OutputError(
                f"{out} holds predictions of another run: its {key} is {reprlib.repr(earlier.get(key))}, "
                f"this run's is {reprlib.repr(run[key])}; choose another --out or remove it"
            )
    for key in _FIXED_SETTINGS:
        before, now = earlier.get("settings", {}).get(key), run["settings"][key]
        if before != now:
            raise OutputError(
                f"{out} holds predictions made with {key} {before}, this run has {now}; "
                "choose another --out or remove it"
            )
    cut_partial_line(out)
    return {prediction.id for prediction in read_predictions(out)}


def cut_partial_line(path: Path) -> None:
    """Remove what a killed run left of a line at the end."""
    with path.open("rb+") as file:
        content_end = file.seek(0, os.SEEK_END)
        at = content_end
        while at > 0:
            step = min(1 << 16, at)
            file.seek(at - step)
            newline = file.read(step).rfind(b"\n")
            if newline >= 0:
                at = at - step + newline + 1
                break
            at -= step
        if at < content_end:
            file.truncate(at)
