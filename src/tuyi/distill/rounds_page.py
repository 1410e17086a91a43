"""What `tuyi distill` tells of its rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tuyi.evaluate.bootstrap import Interval
from tuyi.evaluate.page import PageTable, render_page

__all__ = ["Round", "rounds_page", "rounds_table"]


@dataclass(frozen=True, slots=True)
class Round:
    """One round.

    Args:
        number: 0 for the one on labelled rows alone.
        teacher: Who labelled; None in round 0.
        labelled: Labelled rows that the student learned from.
        kept: Rows with a teacher's label beside them.
        unlabelled: Rows that the teacher was asked about.
        agreement: Share of them with the label of the round before; None where there is none.
        weighted_f1: On the validation rows.
    """

    number: int
    teacher: str | None
    labelled: int
    kept: int
    unlabelled: int | None
    agreement: float | None
    weighted_f1: Interval


def rounds_table(rounds: Sequence[Round], best: Round) -> PageTable:
    """The rounds, one a line."""
    columns = ("round", "labelled rows", "kept rows of the teacher", "same label as before", "weighted F1", "")
    body = tuple(
        (
            f"{one.number}: {one.teacher or 'labelled rows alone'}",
            str(one.labelled),
            "–" if one.unlabelled is None else f"{one.kept} of {one.unlabelled}",
            "–" if one.agreement is None else f"{one.agreement:.3f}",
            f"{one.weighted_f1.value:.3f} ({one.weighted_f1.low:.3f}–{one.weighted_f1.high:.3f})",
            "best" if one == best else "",
        )
        for one in rounds
    )
    note = "Weighted F1 on the validation rows, which also choose the best round: it flatters that one a little."
    return PageTable("Rounds", columns, body, note)


def rounds_page(
    out: Path, rounds: Sequence[Round], best: Round, tables: Sequence[PageTable], made_of: Sequence[str]
) -> str:
    """The report as a page.

    Args:
        out: The model folder.
        rounds: All of them.
        best: The one that became the model.
        tables: From :func:`rounds_table`.
        made_of: Labelled rows, unlabelled rows, validation rows, base model.
    """
    gain = 100 * (best.weighted_f1.value - rounds[0].weighted_f1.value)
    lead = f"Round {best.number} is the best: {gain:+.1f} points of weighted F1 over the labelled rows alone."
    names = ("Labelled rows", "Unlabelled rows", "Validation rows", "Base model")
    made = {"Model": str(out), **dict(zip(names, made_of, strict=True))}
    return render_page("tuyi distill", f"{best.weighted_f1.value:.3f} weighted F1", lead, tables, made)
