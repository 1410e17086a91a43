"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, TypeAlias

import typer

__all__ = ["BadRow", "Engine", "Form", "FormOption", "OnBadRowOption", "Read", "Set", "overrides"]


class BadRow(StrEnum):
    """What one bad row does."""

    stop = "stop"
    skip = "skip"


class Engine(StrEnum):
    """Who runs a model."""

    local = "local"
    ray = "ray"
    vllm = "vllm"
    api = "api"


class Form(StrEnum):
    """Columns of a submission."""

    full = "full"
    bare = "bare"


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
FormOption: TypeAlias = Annotated[
    Form, typer.Option("--submission-form", help="All test columns and predict, or id,predict.")
]


def overrides(set_: list[str] | None, read: list[str] | None = None, engine: Engine | None = None) -> list[str]:
    """Settings that options say, as ``--set`` would; later ones win.

    Args:
        set_, read: The options of these names.
        engine: Who runs the model, where an option says it.
    """
    named = [f"predict.engine={engine.value}"] if engine else []
    return [*(set_ or ()), *(f"read.{item}" for item in read or ()), *named]
