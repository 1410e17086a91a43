"""``tuyi split``: train and test parts that share no picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuyi.cli.options import Read

if TYPE_CHECKING:
    from tuyi.data import SplitReport

__all__ = ["split"]


def split(
    data: Annotated[Path, typer.Argument(help="Data file, or a folder per label.")],
    out_dir: Annotated[Path, typer.Argument(help="Folder for one file a part.")],
    parts: Annotated[str, typer.Option(help="Names and shares.")] = "train=0.8,test=0.2",
    seed: Annotated[int, typer.Option(help="Another seed, another division.")] = 0,
    task: Annotated[str | None, typer.Option(help="Built-in task or YAML file that tells the rows' tasks.")] = None,
    read: Read = None,
    copy_media: Annotated[bool, typer.Option("--copy-media", help="Copy pictures and videos into OUT_DIR.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> None:
    """Divide data by task and label; rows with the same picture or text stay on one side."""
    from tuyi.config import load_settings
    from tuyi.data import ReadOptions
    from tuyi.data import split as split_data
    from tuyi.task import load_tasks

    report = split_data(
        data,
        out_dir,
        _shares(parts),
        seed=seed,
        tasks=load_tasks(task) if task is not None else None,
        options=load_settings(ReadOptions, None, read),
        force=force,
        copy_media=copy_media,
    )
    _show(report)


def _shares(parts: str) -> dict[str, float]:
    from tuyi.errors import ConfigError

    shares: dict[str, float] = {}
    for part in parts.split(","):
        name, _, share = part.partition("=")
        try:
            value = float(share)
        except ValueError as error:
            raise ConfigError(f"--parts: expected NAME=SHARE,NAME=SHARE, found {parts!r}") from error
        if name.strip() in shares:
            raise ConfigError(f"--parts: {name.strip()!r} stands there twice")
        shares[name.strip()] = value
    return shares


def _show(report: SplitReport) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("task", "label", *report.files)
    for task, label in sorted({stratum for counts in report.counts.values() for stratum in counts}):
        table.add_row(task, label, *(str(counts.get((task, label), 0)) for counts in report.counts.values()))
    table.add_section()
    table.add_row("", "all rows", *(str(sum(counts.values())) for counts in report.counts.values()))
    console = Console(highlight=False)
    console.print(table)
    for (task, label), part in report.missing:
        console.print(
            f"too few rows: {part} has none of {label} ({task})", style="yellow", markup=False, soft_wrap=True
        )
    console.print(
        f"{report.groups} groups that share a picture or text, the largest of {report.largest_group} rows; "
        f"wrote {', '.join(str(file) for file in report.files.values())}",
        markup=False,
        soft_wrap=True,
    )
