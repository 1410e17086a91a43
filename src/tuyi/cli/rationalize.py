"""``tuyi rationalize``: why each label is right, in a teacher's words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuyi.cli.options import BadRow, Engine, OnBadRowOption, Read, Set, overrides

if TYPE_CHECKING:
    from tuyi.distill.rationalize import RationalizeSummary

__all__ = ["rationalize"]


def rationalize(
    data: Annotated[Path, typer.Argument(help="Labelled rows: a data file, or a folder.")],
    teacher: Annotated[
        str, typer.Option(help="A model folder or hub id; with --engine api the name of a model there.")
    ],
    out: Annotated[Path, typer.Option(help="Data set to write: the rows with their reasons, .jsonl or .json.")],
    engine: Annotated[Engine | None, typer.Option(help="Who runs the teacher; local is the default.")] = None,
    task: Annotated[str | None, typer.Option(help="Built-in task or YAML file; default: the teacher's own.")] = None,
    templates: Annotated[Path | None, typer.Option(help="YAML file with your own wording, by task.")] = None,
    set_: Set = None,
    read: Read = None,
    on_bad_row: OnBadRowOption = BadRow.stop,
) -> None:
    """Have a teacher write why each label is right; bad reasons are left out and counted. Started again, it goes on."""
    from rich.console import Console

    from tuyi.cli.console import teller
    from tuyi.cli.progress import bar
    from tuyi.config import load_settings
    from tuyi.distill.rationalize import RationalizeRun
    from tuyi.distill.rationalize import rationalize as write_reasons

    wording = [f"reasons.templates={templates}"] if templates else []
    run = load_settings(RationalizeRun, None, [*overrides(set_, read, engine), *wording])
    console = Console(highlight=False)
    with bar(console, "asking the teacher") as progress:
        done = write_reasons(
            data,
            teacher,
            out,
            task=task,
            run=run,
            on_bad_row=on_bad_row.value,
            progress=lambda what, rows, total: progress(rows, total),
            tell=teller(console),
        )
    for problem in done.skipped:
        console.print(f"skipped {problem}", style="yellow", markup=False, soft_wrap=True)
    for line in _told(done):
        console.print(line, markup=False, soft_wrap=True)


def _told(done: RationalizeSummary) -> list[str]:
    had = f", {done.had} had one before" if done.had else ""
    lines = [f"{done.out}: {done.rows} rows with a reason ({done.given} new{had})"]
    if done.rejected:
        counts = ", ".join(f"{count} {check.replace('_', ' ')}" for check, count in done.rejected.items())
        lines.append(f"left out {sum(done.rejected.values())}: {counts}; see {done.left_out.name}")
    cost = f", cost {done.cost:.2f}" if done.cost is not None else ""
    earlier = f" ({done.earlier} answers from an earlier run)" if done.earlier else ""
    lines.append(
        f"{done.calls} calls{earlier}, {done.prompt_tokens} prompt and {done.output_tokens} output tokens{cost}; "
        f"{done.seconds:.1f} s"
    )
    return lines
