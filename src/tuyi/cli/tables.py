"""Tables of a page on the console."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from tuyi.evaluate.page import PageTable

__all__ = ["print_tables"]


def print_tables(console: Console, tables: Sequence[PageTable]) -> None:
    """Print tables that have rows, each below its title."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    for table in tables:
        if not table.rows:
            continue
        shown = Table(box=box.SIMPLE_HEAD, title=Text(table.title), title_justify="left", title_style="bold")
        for at, column in enumerate(table.columns):
            shown.add_column(Text(column), justify="right" if at else "left", overflow="fold")
        for row in table.rows:
            shown.add_row(*map(Text, row))
        console.print(shown)
        if table.note:
            console.print(table.note, style="dim", markup=False, soft_wrap=True)
