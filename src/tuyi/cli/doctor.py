"""``tuyi doctor``: what this machine has, what would be used of it, and what is in the way."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["doctor"]


def doctor(
    model: Annotated[str | None, typer.Option(help="A model folder, hub id or built-in name: does it fit?")] = None,
) -> None:
    """Say what this machine has and what prediction would use of it, in one screen.

    Every problem comes with its mending; the exit code is 1 only where prediction cannot run at all.
    """
    from rich.console import Console

    from tuyi.predict.doctor import diagnose

    found = diagnose(model)
    console = Console(highlight=False)
    width = max(len(name) for section in found.sections for name, _ in section.lines)
    for section in found.sections:
        console.print(section.title, style="bold", markup=False)
        for name, value in section.lines:
            console.print(f"  {name:<{width}}  {value}", markup=False, soft_wrap=True)
    for problem in found.problems:
        kind = "cannot predict" if problem.fatal else "problem"
        style = "red" if problem.fatal else "yellow"
        console.print(f"{kind}: {problem.text}\n  fix: {problem.fix}", style=style, markup=False, soft_wrap=True)
    if not found.problems:
        console.print("no problems found", style="green")
    if not found.can_predict:
        raise typer.Exit(1)
