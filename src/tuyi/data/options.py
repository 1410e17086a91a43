"""How a data file is to be read, where the file itself does not say it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

from tuyi.config import Settings

__all__ = ["FormatName", "ReadOptions", "Tags"]

FormatName: TypeAlias = Literal["competition", "sharegpt", "messages", "table", "folder"]


class Tags(Settings):
    """What a ShareGPT file calls its keys and roles.

    Source: the ``tags`` of LLaMA-Factory's ``dataset_info.json``.
    """

    role_tag: str = "from"
    content_tag: str = "value"
    user_tag: str = "human"
    assistant_tag: str = "gpt"
    observation_tag: str = "observation"
    function_tag: str = "function_call"
    system_tag: str = "system"


class ReadOptions(Settings):
    """Settings for reading a data file; nothing needs to be set for a file in the usual form."""

    format: FormatName | Literal["auto"] = "auto"
    """``auto`` tells the format from the file's name and its first row."""
    text: str | None = None
    """Table column with the text; only for tables."""
    label: str | None = None
    """Table column with the label; only for tables."""
    images: str | None = None
    """Column with the pictures."""
    videos: str | None = None
    """Column with the videos."""
    id: str | None = None
    """Column with the row's id; a file without one takes the row number."""
    task: str | None = None
    """Column with the task's name."""
    rationale: str | None = None
    """Column that says why the label is right."""
    weight: str | None = None
    """Column with the row's weight in the training loss."""
    soft: str | None = None
    """Column with a teacher's distribution over the labels."""
    tags: Tags | None = None
    """Keys and roles of a ShareGPT file; without them ``dataset_info.json`` and the usual names are used."""
    media_root: Path | None = None
    """Folder that media names are relative to; by default that of the data file."""
    dataset: str | None = None
    """Name of the data set in ``dataset_info.json``."""
