"""The page of an audit: one HTML file in which a person decides about each issue and downloads the corrections."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tuyi.data.example import Example, Image, Text, Turn
from tuyi.distill.corrections import COLUMNS, corrections_rows
from tuyi.evaluate.mistakes import NearLabel, view
from tuyi.evaluate.rows import Mistake
from tuyi.predict.prediction import Prediction
from tuyi.templates import templates

if TYPE_CHECKING:
    from tuyi.data.example import Part
    from tuyi.distill.audit_folder import Asked, AuditSummary
    from tuyi.distill.audited_rows import AuditedRows
    from tuyi.distill.label_issues import Issue
    from tuyi.task.catalog import TaskSet

__all__ = ["render_page"]

_THUMBNAIL = 280
"""Longer side of a picture in the page, in pixels."""
_LEAST_BAR = 0.001
"""Labels that are less likely get no bar, the given one excepted."""
_TWINS = 6
_MEGABYTE = 1_000_000


def render_page(summary: AuditSummary, audited: AuditedRows, asked: Asked) -> str:
    """The text of ``audit.html``; it fetches nothing, and holds pictures up to the size that the settings say.

    Args:
        summary: What was found.
        audited: The rows that were looked at.
        asked: What the audit was asked to do.
    """
    tasks, settings = asked.tasks, asked.settings
    shown, pictured = _cards(summary.issues[: settings.page_rows], audited, tasks, settings.page_megabytes)
    data: dict[str, Any] = {
        "key": f"tuyi-audit-{audited.fingerprint}",
        "columns": COLUMNS,
        "lines": corrections_rows(summary.issues),
        "labels": {one.name: list(one.labels.names) for one in tasks if one.labels is not None},
        "cards": shown,
    }
    return (
        templates("tuyi.distill", "tuyi.evaluate")
        .get_template("audit.html.j2")
        .render(
            summary=summary,
            rows=sum(one.rows for one in summary.tasks.values()),
            tasks=[
                {"name": name, "audit": one, "table": _table(one.pairs, data["labels"][name])}
                for name, one in summary.tasks.items()
            ],
            source=str(asked),
            shown=len(shown),
            pictured=pictured,
            settings=settings,
            kinds=Counter(kind for issue in summary.issues for kind in issue.kinds),
            made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            # a text that says </script> must not end the data
            data=json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
        )
    )


def _table(pairs: Mapping[tuple[str, str], int], labels: Sequence[str]) -> dict[str, Any]:
    """How many issues there are of each given label (rows) and suggested one (columns); labels without any left out."""
    given, suggested = {pair[0] for pair in pairs}, {pair[1] for pair in pairs}
    columns = [label for label in labels if label in suggested]
    most = max(pairs.values(), default=1)
    rows = []
    for label in labels:
        if label in given:
            counts = [(column, pairs.get((label, column), 0)) for column in columns]
            cells = [{"label": column, "count": many, "strength": many / most} for column, many in counts]
            rows.append({"label": label, "total": sum(many for _, many in counts), "cells": cells})
    return {"labels": columns, "rows": rows}


def _cards(
    issues: tuple[Issue, ...], audited: AuditedRows, tasks: TaskSet, megabytes: float
) -> tuple[list[dict[str, Any]], int]:
    """What the page shows of each issue, and how many of them with their pictures."""
    at = {issue.judged.id: number for number, issue in enumerate(issues)}
    examples: dict[int, Example] = {}
    for row in audited.rows:
        if row.id in at:
            examples[at[row.id]] = row
    cards, used, pictured = [], 0, len(issues)
    for number, issue in enumerate(issues):
        full = used > megabytes * _MEGABYTE
        if full:
            pictured = min(pictured, number)
        card = _card(issue, _unpictured(examples[number]) if full else examples[number], tasks)
        used += sum(len(piece["uri"]) for bubble in card["said"] for piece in bubble["pieces"] if "uri" in piece)
        cards.append(card)
    return cards, pictured


def _card(issue: Issue, example: Example, tasks: TaskSet) -> dict[str, Any]:
    row = issue.judged
    said = Prediction(row.id, row.task, issue.suggested, {}, row.probabilities)
    seen = view(Mistake(example, tasks[row.task], row.label, said, None), _THUMBNAIL)
    return {
        "kinds": issue.kinds,
        "row": row.row,
        "severity": round(issue.severity, 3),
        "rare": row.rare,
        "near": [[near.label, round(near.probability, 4)] for near in seen.near if _worth_a_bar(near)],
        "twins": row.others[:_TWINS],
        "more_twins": max(0, len(row.others) - _TWINS),
        "said": [bubble.data() for bubble in (*seen.earlier, *seen.bubbles)],
    }


def _worth_a_bar(near: NearLabel) -> bool:
    return near.probability >= _LEAST_BAR or near.kind == "gold"


def _unpictured(example: Example) -> Example:
    """The row with its pictures' names in their place."""

    def named(parts: tuple[Part, ...]) -> tuple[Part, ...]:
        return tuple(Text(f"[{part.name or part}]") if isinstance(part, Image) else part for part in parts)

    history = tuple(Turn(turn.role, named(turn.parts)) for turn in example.history)
    return replace(example, content=named(example.content), history=history)
