"""``tuyi label``: label distributions for unlabelled rows, from one teacher or several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuyi.cli.ensemble import numbers
from tuyi.cli.options import BadRow, Engine, OnBadRowOption, Read, Set, overrides

__all__ = ["label"]


def label(
    data: Annotated[Path, typer.Argument(help="Rows without labels: a data file, or a folder.")],
    out: Annotated[Path, typer.Option(help="Data set to write, .jsonl or .json.")],
    teacher: Annotated[
        list[str], typer.Option(help="A model folder or hub id; name the option again for several, which are averaged.")
    ],
    check: Annotated[Path | None, typer.Option(help="Labelled rows that say how good teachers and filter are.")] = None,
    task: Annotated[str | None, typer.Option(help="Built-in task or YAML file; default: the teacher's own.")] = None,
    engine: Annotated[Engine | None, typer.Option(help="Who runs the teachers, as for predict.")] = None,
    weights: Annotated[str | None, typer.Option(help="Of each teacher, such as 2,1; equal where not given.")] = None,
    set_: Set = None,
    read: Read = None,
    on_bad_row: OnBadRowOption = BadRow.stop,
) -> None:
    """Let teachers label rows, and write those that can be trusted with their soft labels."""
    from rich.console import Console

    from tuyi.cli.console import teller
    from tuyi.cli.progress import bar
    from tuyi.cli.tables import print_tables
    from tuyi.config import load_settings
    from tuyi.distill.label import LabelSettings
    from tuyi.distill.label import label as label_rows

    settings = load_settings(LabelSettings, None, overrides(set_, read, engine))
    console = Console(highlight=False)
    with bar(console, "asking teachers") as progress:
        done = label_rows(
            data,
            out,
            teacher,
            task=task,
            weights=numbers(weights) if weights is not None else None,
            check=check,
            settings=settings,
            on_bad_row=on_bad_row.value,
            progress=progress,
            tell=teller(console),
        )
    print_tables(console, done.tables)
    console.print(
        f"{done.out}: {done.kept} of {done.rows} rows   left out, with why: {done.left_out}\nReport: {done.report}",
        markup=False,
        soft_wrap=True,
    )
