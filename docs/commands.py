"""Write ``docs/commands.md`` from the commands' own ``--help``; with ``--check`` say whether it has drifted."""

from __future__ import annotations

import sys
from pathlib import Path

import typer
from typer.main import get_command

from tuyi.cli import app

PAGE = Path(__file__).with_name("commands.md")


def helps(command, path: tuple[str, ...]):
    """(command line, help text) of a command and those below it."""
    context = typer.Context(command, info_name=" ".join(path))
    context.max_content_width = context.terminal_width = 100
    yield " ".join(path), command.get_help(context)
    for name, inner in getattr(command, "commands", {}).items():
        yield from helps(inner, (*path, name))


def page() -> str:
    """The page, one section a command."""
    lines = ["# Commands", "", "Written by `make docs` from each command's `--help`.", ""]
    for name, text in helps(get_command(app), ("tuyi",)):
        lines += [f"## `{name}`", "", "```text", *(line.rstrip() for line in text.splitlines()), "```", ""]
    return "\n".join(lines)


def main() -> None:
    if "--check" not in sys.argv:
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
        sys.exit("docs/commands.md is not what --help says; run `make docs`")


if __name__ == "__main__":
    main()
