"""What a model was shown: rows, labels, pictures and videos, counted for those who use it later."""

from __future__ import annotations

from collections import Counter

from tuyi.encode.survey import Survey
from tuyi.model.folder import SeenRows
from tuyi.task.catalog import TaskSet
from tuyi.train.reasons import ReasonTask

__all__ = ["seen"]


def seen(rows: Survey, tasks: TaskSet) -> dict[str, SeenRows]:
    """Count the rows of each task.

    Args:
        rows: What was used. Questions for reasons are no rows of their own.
        tasks: The tasks that they ask.

    Returns:
        By task name; tasks without rows are left out.
    """
    found: dict[str, Counter[str]] = {}
    labels: dict[str, Counter[str]] = {}
    for row in rows.rows:
        task = tasks.of(row)
        if isinstance(task, ReasonTask):
            continue
        counts = found.setdefault(task.name, Counter())
        counts["rows"] += 1
        for kind, media in (("pictures", row.images), ("videos", row.videos)):
            counts[f"with_{kind}"] += bool(media)
            counts[f"most_{kind}"] = max(counts[f"most_{kind}"], len(media))
        if task.labels is not None and row.label is not None:
            labels.setdefault(task.name, Counter(dict.fromkeys(task.labels.names, 0)))
            labels[task.name][task.labels.canonical(row.label)] += 1
    return {name: SeenRows(**counts, labels=dict(labels.get(name, {}))) for name, counts in found.items()}
