"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, TypeAlias

import typer

__all__ = ["BadRow", "OnBadRowOption", "Read", "Set"]


class BadRow(StrEnum):
    """What one bad row does."""

    stop = "stop"
    skip = "skip"


OnBadRowOption: TypeAlias = Annotated[
    BadRow,
    typer.Option("--on-bad-row", help="A row that cannot be used: stop before the model loads, or name and skip it."),
]
Read: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="How to read the data: format=…, text=COLUMN, media_root=DIR, …"),
]
Set: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting by its dotted name, such as budget.max_pixels=200704."),
]
