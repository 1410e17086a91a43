"""Rows whose label is probably wrong: by their out-of-sample distributions, and by rows that show the same."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Issue", "Judged", "Method", "Twins", "find_issues", "label_issues"]

Method: TypeAlias = Literal["prune_by_class", "prune_by_noise_rate", "both", "confident_learning"]
Kind: TypeAlias = Literal["model", "duplicate"]


@dataclass(frozen=True, slots=True)
class Twins:
    """Rows of one task that show the same; each of them shares this object.

    Args:
        rows: Id and label of each.
        labels: How many of them have each label.
    """

    rows: tuple[tuple[str, str], ...]
    labels: Mapping[str, int]

    @classmethod
    def of(cls, rows: Iterable[tuple[str, str]]) -> Twins:
        """The twins with these ids and labels."""
        listed = tuple(rows)
        return cls(listed, Counter(label for _, label in listed))


@dataclass(frozen=True, slots=True)
class Judged:
    """A labelled row and what is known about its label.

    Args:
        task: Name of its task.
        label: Its label in the task's spelling.
        probabilities: Out-of-sample probability of each label; empty where no model could say.
        twins: The row and those that show the same, where there are any.
        rare: Whether its label has fewer rows than there are folds.
    """

    id: str
    row: int | None
    task: str
    label: str
    fingerprint: str
    probabilities: Mapping[str, float]
    twins: Twins | None = None
    rare: bool = False

    @property
    def contradicted(self) -> bool:
        """Whether a row that shows the same has another label."""
        return self.twins is not None and len(self.twins.labels) > 1

    @property
    def others(self) -> list[tuple[str, str]]:
        """Id and label of the other rows that show the same."""
        return [row for row in self.twins.rows if row[0] != self.id] if self.twins is not None else []


@dataclass(frozen=True, slots=True)
class Issue:
    """A row whose label is probably wrong.

    Args:
        judged: The row.
        kinds: Who says so: ``model``, ``duplicate`` (a row that shows the same has another label), or both.
        suggested: The likelier label.
        severity: From 0 to 1; issues are ranked by it.
        confidence: Probability of the suggested label; for a duplicate that no model judged, its share among the rows
            that show the same.
    """

    judged: Judged
    kinds: tuple[Kind, ...]
    suggested: str
    severity: float
    confidence: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; probabilities from the largest down."""
        row = self.judged
        ranked = sorted(row.probabilities.items(), key=lambda item: -item[1])
        return {
            "id": row.id,
            "row": row.row,
            "task": row.task,
            "kinds": list(self.kinds),
            "given_label": row.label,
            "suggested_label": self.suggested,
            "severity": round(self.severity, 4),
            "confidence": round(self.confidence, 4),
            "rare": row.rare,
            "twins": [{"id": id, "label": label} for id, label in row.others],
            "probabilities": {name: float(f"{value:.4g}") for name, value in ranked},
            "seen": row.fingerprint,
        }


def label_issues(
    given_N: NDArray[np.int64], probabilities_NK: NDArray[np.float64], method: Method
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Which of a task's labels are probably wrong, by confident learning, and how wrong each looks.

    A row counts as confidently of class k where its probability of k reaches the mean that the rows labelled k have.
    These counts, scaled so that each given label has as many rows as it really has, say how many labels of each class
    are wrong (``prune_by_class``) or of each pair of classes (``prune_by_noise_rate``); so many rows are taken, the
    least likely of the class or the ones with the largest margin of the pair first. Rows whose given label is the
    likeliest are never taken.

    Args:
        given_N: Given labels, as indices.
        probabilities_NK: Out-of-sample probabilities of the K labels.
        method: Which rows are taken.

    Returns:
        The rows taken, and each row's severity from 0 to 1: (1 - p(given) + largest other p) / 2.

    Source: Northcutt et al., "Confident Learning: Estimating Uncertainty in Dataset Labels" (arXiv 1911.00068),
    sections 3.1 to 3.3; cleanlab's ``filter.find_label_issues`` and ``rank.get_normalized_margin_for_each_label``.
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    quality_N = get_label_quality_scores(given_N, probabilities_NK, method="normalized_margin")
    severity_N = np.asarray(1 - quality_N, dtype=np.float64)
    if len(np.unique(given_N)) < 2:
        return np.zeros(len(given_N), dtype=bool), severity_N
    with warnings.catch_warnings():
        # it warns of labels with a single row, which the audit tells of in words of its own
        warnings.filterwarnings("ignore", message="May not flag all label issues", category=UserWarning)
        # one process: cleanlab's own are slower than the work for all but millions of rows
        taken_N = find_label_issues(given_N, probabilities_NK, filter_by=method, n_jobs=1)
    return np.asarray(taken_N, dtype=bool), severity_N


def find_issues(rows: Sequence[Judged], labels: Mapping[str, tuple[str, ...]], method: Method) -> list[Issue]:
    """Every row whose label is probably wrong, the worst first; each task is judged for itself.

    Args:
        rows: All labelled rows.
        labels: The labels of each task, by its name.
        method: As in :func:`label_issues`.
    """
    severities: dict[int, float] = {}
    for task, names in labels.items():
        asked = [at for at, row in enumerate(rows) if row.task == task and row.probabilities]
        if not asked:
            continue
        index = {name: number for number, name in enumerate(names)}
        given_N = np.array([index[rows[at].label] for at in asked], dtype=np.int64)
        table_NK = np.array([[rows[at].probabilities[name] for name in names] for at in asked], dtype=np.float64)
        taken_N, severity_N = label_issues(given_N, table_NK / table_NK.sum(axis=1, keepdims=True), method)
        severities.update((asked[at], float(severity_N[at])) for at in np.flatnonzero(taken_N))
    issues = [_issue(row, severities.get(at)) for at, row in enumerate(rows) if at in severities or row.contradicted]
    return sorted(issues, key=lambda issue: -issue.severity)


def _issue(row: Judged, severity: float | None) -> Issue:
    kinds: tuple[Kind, ...] = (
        *(("model",) if severity is not None else ()),
        *(("duplicate",) if row.contradicted else ()),
    )
    counts = row.twins.labels if row.twins is not None else {row.label: 1}
    shares = {label: many / sum(counts.values()) for label, many in counts.items()}
    if severity is not None:
        suggested = max(row.probabilities, key=lambda name: row.probabilities[name])
    else:
        others = sorted(shares.keys() - {row.label})
        suggested = max(others, key=lambda name: (shares[name], row.probabilities.get(name, 0.0)))
    confidence = row.probabilities[suggested] if row.probabilities else shares[suggested]
    return Issue(row, kinds, suggested, max(severity or 0.0, 1 - shares[row.label]), confidence)
