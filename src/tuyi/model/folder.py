"""The model folder: an ordinary Hugging Face folder plus ``tuyi.json``.

``tuyi.json`` remembers what the model was taught: tasks with labels and budgets, the base model, versions, settings,
calibration and scores. Peers ignore it; later commands take their task and budgets from it.
"""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tuyi.config import explain_errors
from tuyi.errors import ModelError
from tuyi.task.catalog import TaskSet
from tuyi.whole import write_whole

__all__ = ["FILE", "FolderInfo", "read_info", "temperature", "versions", "write_info"]

FILE = "tuyi.json"


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
    """What a folder's ``tuyi.json`` says; None where it has none.

    Raises:
        ModelError: The file is broken.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        return FolderInfo.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ModelError(explain_errors(error, str(path), FolderInfo)) from error


def write_info(folder: Path, info: FolderInfo) -> None:
    """Write ``tuyi.json`` whole or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    write_whole(folder / FILE, json.dumps(info.model_dump(mode="json"), ensure_ascii=False, indent=1))
