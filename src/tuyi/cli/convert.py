"""``tuyi convert``: a data file in another format."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tuyi.cli.options import Read

__all__ = ["convert"]


class OutputFormat(StrEnum):
    """Formats that can be written."""

    competition = "competition"
    sharegpt = "sharegpt"
    messages = "messages"


def convert(
    data: Annotated[Path, typer.Argument(help="Data file, or a folder per label.")],
    out: Annotated[Path, typer.Argument(help="File to write: .json, for messages .jsonl.")],
    to: Annotated[OutputFormat, typer.Option(help="Format to write; sharegpt brings its dataset_info.json.")],
    read: Read = None,
    copy_media: Annotated[bool, typer.Option("--copy-media", help="Copy pictures and videos beside OUT.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT where it is there.")] = False,
) -> None:
    """Write a data file in another format; nothing of it is lost."""
    from rich.console import Console

    from tuyi.config import load_settings
    from tuyi.data import ReadOptions
    from tuyi.data import convert as convert_data

    options = load_settings(ReadOptions, None, read)
    done = convert_data(data, out, to.value, options, force=force, copy_media=copy_media)
    Console(highlight=False).print(
        f"{done.out}: {done.rows} rows ({done.unlabelled} unlabelled), {done.media} pictures and videos, "
        f"{done.format} format",
        markup=False,
        soft_wrap=True,
    )
