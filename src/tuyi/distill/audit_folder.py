"""The folder of an audit: what was asked and what was found, as files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuyi.distill.audit_page import render_page
from tuyi.distill.audit_tasks import RECORD
from tuyi.distill.corrections import corrections_csv, read_corrections
from tuyi.distill.label_issues import Issue, Judged
from tuyi.errors import OutputError
from tuyi.task.catalog import TaskSet
from tuyi.whole import write_whole

if TYPE_CHECKING:
    from tuyi.distill.audit import AuditSettings
    from tuyi.distill.audited_rows import AuditedRows

__all__ = ["Asked", "AuditSummary", "TaskAudit", "claim_audit", "write_audit"]

_UNSURE = 0.6
_DECIDES = {"folds", "seed", "near_pictures", "train", "budget"}
"""Settings that the predictions depend on."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What an audit was asked to do.

    Args:
        data: The data set.
        rows: Fingerprint of its rows.
        tasks: What its rows are asked.
        model: What the folds' models start from.
        predictions: Predictions that take the models' place.
        settings: How.
    """

    data: str
    rows: str
    tasks: TaskSet
    model: str
    predictions: Path | None
    settings: AuditSettings

    def to_dict(self) -> dict[str, Any]:
        """Plain data; two audits with equal data have equal predictions."""
        return {
            "data": self.data,
            "rows": self.rows,
            "tasks": self.tasks.model_dump(mode="json"),
            "model": self.model if self.predictions is None else None,
            "predictions": str(self.predictions) if self.predictions is not None else None,
            "settings": self.settings.model_dump(mode="json", include=_DECIDES),
        }

    def __str__(self) -> str:
        if self.predictions is not None:
            return f"Judged by the predictions in {self.predictions}."
        folds = self.settings.folds
        return f"Each row was judged by a {self.model} model trained on the other {folds - 1} of {folds} folds."


@dataclass(frozen=True, slots=True)
class TaskAudit:
    """What was found in the rows of one task.

    Args:
        rows: Labelled rows.
        judged: Of them, rows that a model judged.
        agreement: Share of those whose likeliest label is the given one; None where none was judged.
        issues: Rows with an issue.
        pairs: How many issues there are of each given and suggested label, the most frequent first.
        rare: Rows of each label that has fewer of them than there are folds.
        unjudged: Rows of each label that no model could learn for them, since all are in one fold.
    """

    rows: int
    judged: int
    agreement: float | None
    issues: int
    pairs: Mapping[tuple[str, str], int]
    rare: Mapping[str, int]
    unjudged: Mapping[str, int]

    @property
    def is_unsure(self) -> bool:
        """Whether the models agree with so few labels that most issues may be their own mistakes."""
        return self.agreement is not None and self.agreement < _UNSURE


@dataclass(frozen=True, slots=True)
class AuditSummary:
    """What an audit found.

    Args:
        out: Its folder, with ``issues.jsonl``, ``corrections.csv``, ``audit.html``, ``audit.json``,
            ``predictions.jsonl``.
        issues: Rows whose label is probably wrong, the worst first.
        tasks: What was found, by task.
        unlabelled: Rows without a label, or of a task without labels, which nobody looked at.
        corrections_kept: Whether a corrections file was there that somebody had written in, and stays as it was.
    """

    out: Path
    issues: tuple[Issue, ...]
    tasks: Mapping[str, TaskAudit]
    unlabelled: int
    corrections_kept: bool


def claim_audit(out: Path, asked: Asked) -> None:
    """Take a folder for an audit, or make sure that the audit in it is this one.

    Raises:
        OutputError: It is taken, or cannot be written.
    """
    file, now = out / RECORD, asked.to_dict()
    if file.exists():
        earlier = json.loads(file.read_text(encoding="utf-8")).get("asked", {})
        if different := [key for key in now if earlier.get(key) != now[key]]:
            what = "the rows are others now" if different[0] == "rows" else f"its {different[0]} is another"
            raise OutputError(f"{out} holds another audit: {what}; choose another --out or remove it")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} has something in it that is no audit; expected a new or empty folder")
    write_whole(file, _json({"asked": now}))


def write_audit(
    out: Path, asked: Asked, audited: AuditedRows, judged: Sequence[Judged], issues: Sequence[Issue]
) -> AuditSummary:
    """Write what was found.

    Args:
        out: The folder.
        asked: What the audit was asked to do.
        audited: The rows.
        judged: What is known about each one's label.
        issues: Rows whose label is probably wrong, the worst first.

    Raises:
        OutputError: The folder cannot be written.
    """
    names = [one.name for one in asked.tasks if any(row.task == one.name for row in judged)]
    summary = AuditSummary(
        out=out,
        issues=tuple(issues),
        tasks={name: _of_task(name, judged, issues) for name in names},
        unlabelled=audited.unlabelled,
        corrections_kept=_write_corrections(out / "corrections.csv", issues),
    )
    lines = ({"rank": rank, **issue.to_dict()} for rank, issue in enumerate(issues, 1))
    write_whole(
        out / "issues.jsonl",
        (json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines),
    )
    write_whole(out / "audit.html", render_page(summary, audited, asked))
    tasks = {
        name: {**asdict(one), "pairs": [[*pair, rows] for pair, rows in one.pairs.items()]}
        for name, one in summary.tasks.items()
    }
    found = {"issues": len(issues), "unlabelled": summary.unlabelled, "tasks": tasks}
    write_whole(out / RECORD, _json({"asked": asked.to_dict(), "found": found}))
    return summary


def _of_task(name: str, judged: Sequence[Judged], issues: Sequence[Issue]) -> TaskAudit:
    rows = [row for row in judged if row.task == name]
    asked = [row for row in rows if row.probabilities]
    agreed = sum(max(row.probabilities, key=lambda label: row.probabilities[label]) == row.label for row in asked)
    found = [issue for issue in issues if issue.judged.task == name]
    return TaskAudit(
        rows=len(rows),
        judged=len(asked),
        agreement=agreed / len(asked) if asked else None,
        issues=len(found),
        pairs=dict(Counter((issue.judged.label, issue.suggested) for issue in found).most_common()),
        rare=dict(Counter(row.label for row in rows if row.rare)),
        unjudged=dict(Counter(row.label for row in rows if not row.probabilities)),
    )


def _write_corrections(file: Path, issues: Sequence[Issue]) -> bool:
    """Write the corrections file; whether one that somebody has written in was left as it is instead."""
    text = corrections_csv(issues)
    if file.exists() and any(line.action or line.new_label for line in read_corrections(file)):
        return True
    write_whole(file, text, encoding="utf-8-sig")
    return False


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"
