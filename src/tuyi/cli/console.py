"""Plain lines on the console, whatever characters are in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["teller"]


def teller(console: Console, style: str | None = "dim") -> Callable[[str], None]:
    """A function that prints a line as it is: no markup, no breaks but the terminal's own.

    Args:
        console: Where to.
        style: Of the line; by default that of what is said by the way.
    """
    return lambda line: console.print(line, style=style, markup=False, soft_wrap=True)
