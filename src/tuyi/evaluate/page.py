"""A page of tables in the style of the report: one HTML file without scripts or anything fetched from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tuyi.templates import templates

__all__ = ["PageTable", "render_page"]


@dataclass(frozen=True, slots=True)
class PageTable:
    """A table for people, on a page and on the console alike.

    Args:
        title: What it shows.
        columns: Their names; the first one is text, the others are numbers.
        rows: Cells as text, as many a row as there are columns.
        note: A sentence below it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def render_page(kicker: str, title: str, lead: str, tables: Sequence[PageTable], made: Mapping[str, str]) -> str:
    """The text of the page.

    Args:
        kicker: Which command made it.
        title: The main result, as a heading.
        lead: What stands below it.
        tables: In order; those without rows are left out.
        made: How it was made, by name.
    """
    shown = [table for table in tables if table.rows]
    page = templates("tuyi.evaluate").get_template("tables.html.j2")
    return page.render(kicker=kicker, title=title, lead=lead, tables=shown, made=made)
