"""The model folder: an ordinary Hugging Face folder plus ``tuyi.json``; or one such folder for each of several tasks.

``tuyi.json`` remembers what the model was taught: tasks with labels and budgets, the base model, versions, settings,
calibration and scores. Peers ignore it; later commands take their task and budgets from it. Where each task was trained
apart, the folder holds ``tuyi.json`` alone, and its members are model folders.
"""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tuyi.config import explain_errors
from tuyi.errors import ModelError
from tuyi.task.catalog import TaskSet
from tuyi.whole import write_whole

__all__ = ["FILE", "FolderInfo", "SeenRows", "need_one_model", "read_info", "temperature", "versions", "write_info"]

FILE = "tuyi.json"


class SeenRows(BaseModel):
    """Rows of one task that a model was trained or validated on, counted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    labels: dict[str, int] = Field(default_factory=dict)
    """Rows of each label, in the task's order; empty for an open task."""
    with_pictures: int = 0
    most_pictures: int = 0
    """Pictures of the row that has most of them."""
    with_videos: int = 0
    most_videos: int = 0


class FolderInfo(BaseModel):
    """What ``tuyi.json`` says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = 1
    """Version of this file's form."""
    tasks: TaskSet
    """The tasks that the model was taught, in full."""
    base_model: str
    """What it was trained from."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Versions of the packages that trained it."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """The resolved training settings."""
    calibration: dict[str, Any] = Field(default_factory=dict)
    """For each task the temperature that ``tuyi evaluate`` fitted."""
    scores: dict[str, Any] = Field(default_factory=dict)
    """Scores on the rows it was validated on."""
    data: dict[str, dict[str, SeenRows]] = Field(default_factory=dict)
    """For ``train`` and ``valid``, where there was one, what each task's rows were."""
    members: dict[str, str] = Field(default_factory=dict)
    """For each task the subfolder with its model, where each was trained apart; the folder has no weights itself."""

    @model_validator(mode="after")
    def _every_task_has_one(self) -> FolderInfo:
        names = [task.name for task in self.tasks]
        if self.members and sorted(self.members) != sorted(names):
            raise ValueError(f"members: expected the tasks {', '.join(names)}; found {', '.join(self.members)}")
        return self

    def temperature(self, task: str) -> float:
        """The fitted temperature of a task, 1 where none was fitted."""
        return float(self.calibration.get(task, {}).get("temperature", 1.0))


def temperature(info: FolderInfo | None, task: str) -> float:
    """The fitted temperature of a task; 1 for a model that remembers nothing."""
    return info.temperature(task) if info else 1.0


def versions() -> dict[str, str]:
    """Versions of tuyi and of the packages that decide its numbers."""
    return {name: metadata.version(name) for name in ("tuyi", "torch", "transformers", "accelerate", "peft")}


def read_info(folder: Path) -> FolderInfo | None:
    """What a folder's ``tuyi.json`` says; None where it has none. A temperature is what the task's own model has.

    Raises:
        ModelError: The file is broken, or a member is missing.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        info = FolderInfo.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ModelError(explain_errors(error, str(path), FolderInfo)) from error
    if not info.members:
        return info
    calibration: dict[str, Any] = {}
    for task, name in info.members.items():
        member = read_info(folder / name)
        if member is None:
            raise ModelError(
                f"{folder} names {name} as the model of task {task}, and {folder / name} is none: it has no {FILE}; "
                "bring the whole folder here, or train it anew"
            )
        calibration |= {task: member.calibration[task]} if task in member.calibration else {}
    return info.model_copy(update={"calibration": calibration})


def need_one_model(name: str | Path, info: FolderInfo | None) -> None:
    """Make sure that a folder is a single model.

    Args:
        name: The folder.
        info: What it remembers.

    Raises:
        ModelError: It holds one model for each task.
    """
    if info is not None and info.members:
        members = ", ".join(str(Path(name) / member) for member in info.members.values())
        raise ModelError(f"{name} holds a model for each task, and a single one is needed here: name one of {members}")


def write_info(folder: Path, info: FolderInfo) -> None:
    """Write ``tuyi.json`` whole or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    write_whole(folder / FILE, json.dumps(info.model_dump(mode="json"), ensure_ascii=False, indent=1))
