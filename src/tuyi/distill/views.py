"""The same rows seen otherwise, with smaller pictures or shorter dialogues: a label that changes is not trusted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pydantic import Field

from tuyi.config import Settings
from tuyi.data.example import Example
from tuyi.data.options import ReadOptions
from tuyi.data.source import scan
from tuyi.data.write import ExampleWriter
from tuyi.errors import TaskError
from tuyi.task.catalog import TaskSet
from tuyi.task.task import Budget, Task

__all__ = ["ViewSettings", "smaller", "write_shorter"]


class ViewSettings(Settings):
    """How else teachers are shown each row; every view asks them once more."""

    pixels: float | None = Field(default=None, gt=0, lt=1)
    """Share of the pixels that a picture may have; smaller pictures stay as they are."""
    turns: float | None = Field(default=None, gt=0, lt=1)
    """Share of a dialogue's turns that is shown, the newest ones; rows of one turn are not asked again."""


def smaller(tasks: TaskSet, share: float) -> TaskSet:
    """The tasks with a share of their pixels.

    Args:
        share: Of the pixels of pictures and of video frames; never less than ``min_pixels``.
    """
    return tasks.model_copy(update={"tasks": tuple(_smaller(task, share) for task in tasks)})


def _smaller(task: Task, share: float) -> Task:
    def cut(pixels: int) -> int:
        return max(budget.min_pixels, int(pixels * share))

    budget: Budget = task.budget
    limits = {"max_pixels": cut(budget.max_pixels), "video_max_pixels": cut(budget.video_max_pixels)}
    return task.model_copy(update={"budget": budget.model_copy(update=limits)})


def write_shorter(data: str | Path, tasks: TaskSet, share: float, out: Path, options: ReadOptions | None) -> int:
    """Write the rows whose dialogue has more than one turn, with the newest turns alone.

    Args:
        data: Any rows; those that cannot be read are passed over.
        tasks: Say where a turn begins.
        share: Of the turns, rounded up.
        out: A ``.jsonl`` file; replaced where it is there.
        options: How to read ``data``.

    Returns:
        How many rows it holds.
    """
    with ExampleWriter(out, "messages", force=True) as writer:
        for row in _shorter(data, tasks, share, options):
            writer.write(row)
    return writer.rows


def _shorter(data: str | Path, tasks: TaskSet, share: float, options: ReadOptions | None) -> Iterator[Example]:
    for row in scan(data, options):
        if not isinstance(row, Example):
            continue
        try:
            task = tasks.of(row)
        except TaskError:
            continue  # the row was left out when the teachers were asked
        turns = task.ask(row).turns
        first = int(len(turns) * (1 - share))
        if first:
            content = tuple(part for turn in turns[first:] for part in turn)
            # the wording around the content is gone and with it what the task is recognised by
            yield replace(row, content=content, task=task.name, label=None, rationale=None, weight=1.0, extra={})
