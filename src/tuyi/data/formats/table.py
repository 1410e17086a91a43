"""Rows with columns for text, media and label: CSV, TSV, Parquet, JSON lines.

Without options the columns are found by their usual names. ``<image>`` and ``<video>`` in the text place the media; a
text without any shows its media first. Several pictures in one CSV cell are a JSON list. Parquet pictures may be
objects of ``bytes`` and ``path``, and numbered labels with names, as the Hugging Face datasets library writes them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tuyi.data.example import Example
from tuyi.data.formats.chat import Message, read_chat
from tuyi.data.formats.fields import Fields
from tuyi.data.formats.media import IMAGE_MARK, VIDEO_MARK, MediaFolders
from tuyi.data.options import ReadOptions
from tuyi.errors import FormatError, Place

__all__ = ["USUAL", "columns_of", "reader"]

USUAL: dict[str, tuple[str, ...]] = {
    "text": ("text", "content", "prompt", "question", "instruction", "query", "sentence"),
    "images": ("images", "image", "image_path", "picture", "pictures", "img"),
    "videos": ("videos", "video", "video_path"),
    "label": ("label", "labels", "output", "answer", "intent", "category", "class"),
}
"""What columns are usually called, likeliest first."""


def columns_of(file: Path, found: Iterable[str], options: ReadOptions) -> dict[str, str]:
    """What the file calls its text, images, videos and label.

    Args:
        file: For messages.
        found: Columns of the first row.
        options: Names that the user gave; they win.

    Raises:
        FormatError: A given column is missing, or none of the columns holds text or media.
    """
    there = list(found)
    names = {}
    for role, usual in USUAL.items():
        given = getattr(options, role)
        if given is not None and given not in there:
            raise FormatError(f"expected the column {given!r} ({role}), found only {', '.join(there)}", Place(file))
        name = given or next((name for name in usual if name in there), None)
        if name is not None:
            names[role] = name
    if not names.keys() & {"text", "images", "videos"}:
        raise FormatError(
            f"expected a column with text ({', '.join(USUAL['text'])}) or pictures ({', '.join(USUAL['images'])}), "
            f"found only {', '.join(there) or 'none'}; name it with text=COLUMN or images=COLUMN",
            Place(file),
        )
    return names


def reader(file: Path, options: ReadOptions, found: Iterable[str] = ()) -> Callable[[Fields], Example]:
    """A function that reads one row; ``found`` are the columns of the first row."""
    folders = MediaFolders(file.parent, options.media_root)
    columns = columns_of(file, found, options)
    cells = file.suffix.lower() in (".csv", ".tsv")

    def read_row(fields: Fields) -> Example:
        if cells:
            fields.row = {
                name: _listed(value) if name in (columns.get("images"), columns.get("videos")) else value
                for name, value in fields.row.items()
            }
        text = (fields.optional_text(columns["text"]) or "") if "text" in columns else ""
        images = folders.images(fields, columns["images"]) if "images" in columns else []
        videos = folders.videos(fields, columns["videos"]) if "videos" in columns else []
        if IMAGE_MARK not in text and VIDEO_MARK not in text:
            text = IMAGE_MARK * len(images) + VIDEO_MARK * len(videos) + text
        messages = [Message("user", text)]
        if (label := _label(fields, columns.get("label", "label"))) is not None:
            messages.append(Message("assistant", label))
        return read_chat(fields, messages, images, videos)

    return read_row


def _listed(cell: str) -> Any:
    """A CSV cell that holds a JSON list, as that list."""
    if not cell.startswith("["):
        return cell
    try:
        return json.loads(cell)
    except json.JSONDecodeError:
        return cell


def _label(fields: Fields, column: str) -> str | None:
    value = fields.take(column)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return fields.label(column)
