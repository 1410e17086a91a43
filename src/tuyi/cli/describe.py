"""``tuyi describe``: one question about each of many pictures and videos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuyi.cli.options import BadRow, OnBadRowOption, Set, overrides

__all__ = ["describe"]


def describe(
    model: Annotated[str, typer.Argument(help="A model folder, hub id or built-in name.")],
    files: Annotated[list[Path], typer.Argument(help="Pictures and videos, or folders of them.")],
    ask: Annotated[str, typer.Option(help="The question about each file.")],
    out: Annotated[Path, typer.Option(help="Answers to write, one JSON object a line.")],
    max_tokens: Annotated[int, typer.Option(help="Most tokens of one answer.")] = 512,
    set_: Set = None,
    on_bad_row: OnBadRowOption = BadRow.stop,
) -> None:
    """Ask a model the same about many pictures and videos, packed together.

    Each line has the file as "id" and the answer as "label". Started again, it goes on where it was stopped.
    """
    from rich.console import Console

    from tuyi.cli.console import teller
    from tuyi.cli.progress import bar
    from tuyi.config import load_settings
    from tuyi.predict.describing import DescribeRun
    from tuyi.predict.describing import describe as describe_files

    run = load_settings(DescribeRun, None, overrides(set_))
    console = Console(highlight=False)
    with bar(console, "describing") as progress:
        done = describe_files(
            model,
            files,
            ask,
            out,
            max_tokens=max_tokens,
            run=run,
            on_bad_row=on_bad_row.value,
            progress=progress,
            tell=teller(console),
        )
    for problem in done.skipped:
        console.print(f"skipped {problem}", style="yellow", markup=False, soft_wrap=True)
    earlier = f", {done.resumed} of them from an earlier run" if done.resumed else ""
    cut = f", {done.cut} cut at {max_tokens} tokens (--max-tokens allows more)" if done.cut else ""
    console.print(f"{done.out}: {done.answers} answers{earlier}{cut}", markup=False, soft_wrap=True)
