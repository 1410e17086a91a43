"""What a check found, as data and as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuyi.data.problem import Problem

__all__ = ["CheckReport", "LengthHistogram", "TaskCount"]

_BINS = 8
_BAR = 30
_SHOWN_LABELS = 60


@dataclass(frozen=True, slots=True)
class LengthHistogram:
    """Lengths of a task's rows in tokens, before anything is shortened.

    Args:
        budget: Most tokens that the task allows.
        bins: (upper bound, rows) of equal steps up to the budget, then one bin for what is longer.
        over: Rows longer than the budget.
        median, p95, longest: Tokens.
    """

    budget: int
    bins: tuple[tuple[int, int], ...]
    over: int
    median: int
    p95: int
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int], budget: int) -> LengthHistogram:
        """The histogram of at least one length."""
        ordered = sorted(lengths)
        bounds = [budget * step // _BINS for step in range(1, _BINS + 1)]
        counts = Counter(next((bound for bound in bounds if length <= bound), -1) for length in ordered)
        over = counts.pop(-1, 0)
        bins = [(bound, counts[bound]) for bound in bounds]
        if over:
            bins.append((ordered[-1], over))
        last = len(ordered) - 1
        return cls(budget, tuple(bins), over, ordered[last // 2], ordered[last * 95 // 100], ordered[-1])


@dataclass(frozen=True, slots=True)
class TaskCount:
    """Rows of one task.

    Args:
        rows: All rows of it.
        unlabelled: Rows without a label.
        labels: Rows of each label, in the task's spelling; labels without rows are there with 0.
        spellings: Rows whose label is spelled otherwise than the task does, ``found → task's``; they are accepted.
        lengths: Token lengths, where the caller could count them.
        soft: Rows with a teacher's distribution over the labels.
    """

    rows: int
    unlabelled: int
    labels: Mapping[str, int]
    spellings: Mapping[str, int]
    lengths: LengthHistogram | None
    soft: int = 0


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What :func:`tuyi.data.check` found.

    Args:
        source: The file that was checked.
        format: Its format; empty where it could not be told.
        against: Files that it must share no picture or text with.
        rows: Rows, good and bad.
        pictures, videos: References to media.
        tasks: Counts for each task.
        problems: Everything wrong, in the order of the rows.
    """

    source: str
    format: str
    against: tuple[str, ...]
    rows: int
    pictures: int
    videos: int
    tasks: Mapping[str, TaskCount]
    problems: tuple[Problem, ...]

    @property
    def errors(self) -> int:
        """Number of problems that must be mended."""
        return sum(problem.severity == "error" for problem in self.problems)

    @property
    def ok(self) -> bool:
        """Whether there is no error; warnings do not count."""
        return self.errors == 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with every problem."""
        return {
            "source": self.source,
            "format": self.format,
            "against": list(self.against),
            "ok": self.ok,
            "rows": self.rows,
            "pictures": self.pictures,
            "videos": self.videos,
            "tasks": {name: _task_dict(count) for name, count in self.tasks.items()},
            "errors": self.errors,
            "warnings": len(self.problems) - self.errors,
            "kinds": dict(Counter(problem.kind for problem in self.problems)),
            "problems": [problem.to_dict() for problem in self.problems],
        }

    def lines(self, limit: int = 10) -> Iterator[str]:
        """The report as text, at most ``limit`` problems of each kind."""
        yield f"{self.source}: {self.rows} rows ({self.format or 'unreadable'}), " + (
            f"{self.pictures} pictures, {self.videos} videos"
        )
        for name, count in self.tasks.items():
            yield ""
            yield from _task_lines(name, count)
        yield ""
        yield from self._problem_lines(limit)

    def _problem_lines(self, limit: int) -> Iterator[str]:
        kinds = Counter((problem.severity, problem.kind) for problem in self.problems)
        for (severity, kind), count in sorted(kinds.items()):
            yield f"{severity}: {kind} ({count})"
            alike = [problem for problem in self.problems if (problem.severity, problem.kind) == (severity, kind)]
            yield from (f"  {problem}" for problem in alike[:limit])
            if count > limit:
                yield f"  … and {count - limit} more; --json lists all"
        errors = self.errors
        yield f"{errors} errors, {len(self.problems) - errors} warnings" if self.problems else "no problems found"


def _task_dict(count: TaskCount) -> dict[str, Any]:
    lengths = count.lengths
    return {
        "rows": count.rows,
        "unlabelled": count.unlabelled,
        "soft": count.soft,
        "labels": dict(count.labels),
        "spellings": dict(count.spellings),
        "lengths": None
        if lengths is None
        else {
            "budget": lengths.budget,
            "bins": [list(item) for item in lengths.bins],
            "over": lengths.over,
            "median": lengths.median,
            "p95": lengths.p95,
            "longest": lengths.longest,
        },
    }


def _task_lines(name: str, count: TaskCount) -> Iterator[str]:
    used = {label: rows for label, rows in count.labels.items() if rows}
    yield f"{name}: {count.rows} rows, {len(used)} of {len(count.labels)} labels, {count.unlabelled} unlabelled"
    if count.soft:
        yield f"  {count.soft} rows have soft labels"
    most = max(used.values(), default=0)
    ordered = sorted(used.items(), key=lambda item: (-item[1], item[0]))
    for label, rows in ordered[:_SHOWN_LABELS]:
        yield f"  {rows:6}  {'█' * max(1, rows * _BAR // most):{_BAR}}  {_one_line(label)}"
    if len(ordered) > _SHOWN_LABELS:
        yield f"  … and {len(ordered) - _SHOWN_LABELS} more labels"
    if unused := [label for label, rows in count.labels.items() if not rows]:
        yield f"  without rows: {', '.join(unused)}"
    for spelling, rows in count.spellings.items():
        yield f"  spelled otherwise, accepted: {spelling} ({rows})"
    if count.lengths is not None:
        yield from _length_lines(count.lengths)


def _one_line(label: str) -> str:
    text = " ".join(label.split())
    return text if len(text) <= 60 else text[:59] + "…"


def _length_lines(lengths: LengthHistogram) -> Iterator[str]:
    yield (
        f"  tokens: median {lengths.median}, 95 % up to {lengths.p95}, longest {lengths.longest}, "
        f"budget {lengths.budget}, {lengths.over} rows over it"
    )
    most = max(rows for _, rows in lengths.bins)
    for bound, rows in lengths.bins:
        bar = "█" * (rows * _BAR // most) if rows else ""
        over = "  over budget, will be shortened" if bound > lengths.budget else ""
        yield f"  ≤ {bound:7}  {bar:{_BAR}} {rows}{over}"
