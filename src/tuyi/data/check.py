"""Everything that can be wrong with a data file, found before anything costs money."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tuyi.cores import cpu_cores
from tuyi.data.example import Example
from tuyi.data.fingerprint import digest, own_text_digest, row_digest
from tuyi.data.inspect_media import Inspected, MediaInspector, inspect_rows
from tuyi.data.options import ReadOptions
from tuyi.data.problem import Kind, Problem, Severity
from tuyi.data.report import CheckReport, LengthHistogram, TaskCount
from tuyi.data.source import find_source, scan
from tuyi.errors import BudgetError, FormatError, LabelError, MediaError, TaskError

if TYPE_CHECKING:
    from tuyi.task import Task, TaskSet

__all__ = ["check"]

NO_TASK = "(no task)"
MAX_LABELS = 1000
OTHERS = "(others)"


def check(
    source: str | Path,
    tasks: TaskSet | None = None,
    *,
    against: Sequence[str | Path] = (),
    options: ReadOptions | None = None,
    length: Callable[[Example], int] | None = None,
    workers: int | None = None,
) -> CheckReport:
    """Check every row, label, picture and video of a data file.

    Args:
        source: Anything that :func:`tuyi.data.scan` reads.
        tasks: The tasks that the rows ask; without them labels are only counted.
        against: Files, such as the test set, that must not share a picture or a text with ``source``.
        options: How to read the files.
        length: Tokens of a row before it is shortened; without it no histogram is made.
        workers: Threads that open media; by default one a core, at most 16.

    Returns:
        The report; its ``ok`` says whether there is no error. Data problems never raise.

    Raises:
        ConfigError: An option that the format has no use for.
    """
    workers = workers or min(cpu_cores(), 16)
    checker = _Checker(tasks, length)
    for path in against:
        inspector = MediaInspector(decode=False)
        for item, found in inspect_rows(_scan_all(path, options), inspector, workers):
            checker.see_elsewhere(Path(path), item, found)
    inspector = MediaInspector(decode=True)
    for item, found in inspect_rows(_scan_all(source, options), inspector, workers):
        checker.see(item, found)
    return checker.report(source, _format_of(source, options), [str(path) for path in against])


def _scan_all(path: str | Path, options: ReadOptions | None) -> Iterator[Example | Problem]:
    try:
        yield from scan(path, options)
    except FormatError as error:
        yield Problem("format", error.message, error.place)


def _format_of(source: str | Path, options: ReadOptions | None) -> str:
    try:
        return find_source(source, options).format
    except FormatError:
        return ""


@dataclass
class _Tally:
    """Running counts of one task."""

    budget: int | None
    rows: int = 0
    unlabelled: int = 0
    soft: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    spellings: Counter[str] = field(default_factory=Counter)
    lengths: list[int] = field(default_factory=list)


class _Checker:
    """State of a check: counts, hashes and problems, never rows."""

    def __init__(self, tasks: TaskSet | None, length: Callable[[Example], int] | None) -> None:
        self.problems: list[Problem] = []
        self._tasks = tasks
        self._length = length
        self._rows = self._pictures = self._videos = 0
        self._tallies: dict[str, _Tally] = {}
        for task in tasks or ():
            self._tallies[task.name] = _Tally(task.budget.max_tokens)
        self._ids: dict[int, int] = {}
        self._media: dict[int, int] = {}
        self._texts: dict[int, int] = {}
        self._shown: dict[int, tuple[int, int]] = {}
        self._other_media: dict[int, tuple[Path, int]] = {}
        self._other_texts: dict[int, tuple[Path, int]] = {}

    def see_elsewhere(self, file: Path, item: Example | Problem, found: Iterable[Inspected]) -> None:
        """Remember what a row of another file shows."""
        if isinstance(item, Problem):
            self.problems.append(item)
            return
        row = item.place.row or 0
        for media in found:
            if media.digest is None:
                self._add("media", media.error or "", item)
            else:
                self._other_media.setdefault(media.digest, (file, row))
        text = own_text_digest(item, self._task_of(item, report=False))
        if text is not None:
            self._other_texts.setdefault(text, (file, row))

    def see(self, item: Example | Problem, found: list[Inspected]) -> None:
        """Check one row."""
        if isinstance(item, Problem):
            self._rows += item.place.row is not None
            self.problems.append(item)
            return
        self._rows += 1
        self._pictures += len(item.images)
        self._videos += len(item.videos)
        for media in found:
            if media.error is not None:
                self._add("media", media.error, item)
        task = self._task_of(item)
        name = task.name if task is not None else (item.task or NO_TASK)
        if task is None and self._tasks is not None:
            name = NO_TASK
        tally = self._tallies.setdefault(name, _Tally(None))
        tally.rows += 1
        label = self._label(item, task, tally)
        self._repeats(item, task, label, [media.digest for media in found if media.digest is not None])
        if self._length is not None and not any(media.error for media in found):
            self._measure(item, tally)

    def _add(self, kind: Kind, message: str, example: Example, severity: Severity = "error") -> None:
        self.problems.append(Problem(kind, message, example.place, severity))

    def _task_of(self, example: Example, report: bool = True) -> Task | None:
        if self._tasks is None:
            return None
        try:
            return self._tasks.of(example)
        except TaskError as error:
            if report:
                self._add("task", str(error).removeprefix(f"{example.place}: "), example)
            return None

    def _label(self, example: Example, task: Task | None, tally: _Tally) -> str | None:
        """The row's label in the task's spelling, counted."""
        label = example.label
        if example.soft is not None:
            tally.soft += 1
            self._soft(example, example.soft, task)
        if label is None:
            tally.unlabelled += 1
            return None
        if task is not None and task.labels is not None:
            try:
                known = task.labels.canonical(label)
            except LabelError as error:
                self._add("label", error.message, example)
                return None
            if known != label:
                tally.spellings[f"{label!r} → {known!r}"] += 1
            label = known
        if task is not None and task.answer.needs_rationale and not example.rationale:
            message = (
                "the task's answer has a rationale, the row has none; add one (`tuyi rationalize`) or use answer: label"
            )
            self._add("rationale", message, example)
        if task is None or task.labels is not None:
            # Open answers are all different: beyond a bound they are only counted.
            tally.labels[label if label in tally.labels or len(tally.labels) < MAX_LABELS else OTHERS] += 1
        return label

    def _soft(self, example: Example, soft: Mapping[str, float], task: Task | None) -> None:
        if task is None:
            return
        if task.labels is None:
            self._add("label", f"the row has soft labels, and task {task.name} is open: it has no labels", example)
            return
        try:
            task.labels.distribution(soft)
        except LabelError as error:
            self._add("label", f"soft labels: {error.message.removeprefix('soft labels: ')}", example)

    def _repeats(self, example: Example, task: Task | None, label: str | None, media: list[int]) -> None:
        """Ids, pictures and texts that stand in two rows or two files."""
        row = example.place.row or 0
        first = self._ids.setdefault(digest(example.id), row)
        if first != row:
            self._add("duplicate-id", f"the id is also that of row {first}; ids must differ", example)
        text = own_text_digest(example, task)
        self._leaks(example, media, text)
        said = digest(label or "")
        first, first_said = self._shown.setdefault(row_digest(example, media), (row, said))
        same_row = first != row
        if same_row and first_said != said:
            self._add("conflict", f"shows the same as row {first} but has another label", example, "warning")
        elif same_row:
            self._add("duplicate-row", f"shows the same as row {first}", example, "warning")
        for shown in dict.fromkeys(media):
            first = self._media.setdefault(shown, row)
            if first != row and not same_row:
                self._add("duplicate-picture", f"a picture or video is also in row {first}", example, "warning")
        if text is not None:
            first = self._texts.setdefault(text, row)
            if first != row and not same_row:
                self._add("duplicate-text", f"has the text of row {first}", example, "warning")

    def _leaks(self, example: Example, media: list[int], text: int | None) -> None:
        for shown in dict.fromkeys(media):
            if shown in self._other_media:
                file, row = self._other_media[shown]
                self._add("leak", f"a picture or video is also in {file}, row {row}", example)
        if text is not None and text in self._other_texts:
            file, row = self._other_texts[text]
            self._add("leak", f"has the text of {file}, row {row}", example)

    def _measure(self, example: Example, tally: _Tally) -> None:
        assert self._length is not None
        try:
            tokens = self._length(example)
        except BudgetError as error:
            self._add("budget", error.message, example)
            return
        except MediaError as error:
            self._add("media", error.message, example)
            return
        tally.lengths.append(tokens)
        if tally.budget is not None and tokens > tally.budget:
            message = f"{tokens} tokens, the budget is {tally.budget}; the row will be shortened"
            self._add("budget", message, example, "warning")

    def report(self, source: str | Path, format: str, against: list[str]) -> CheckReport:
        """The report of everything seen."""
        counts = {}
        for name, tally in self._tallies.items():
            task = next((task for task in self._tasks or () if task.name == name), None)
            names = task.labels.names if task is not None and task.labels is not None else sorted(tally.labels)
            labels = {label: tally.labels[label] for label in names}
            budget = tally.budget or max(tally.lengths, default=0)
            lengths = LengthHistogram.of(tally.lengths, budget) if tally.lengths else None
            counts[name] = TaskCount(tally.rows, tally.unlabelled, labels, dict(tally.spellings), lengths, tally.soft)
        return CheckReport(
            source=str(source),
            format=format,
            against=tuple(against),
            rows=self._rows,
            pictures=self._pictures,
            videos=self._videos,
            tasks=counts,
            problems=tuple(self.problems),
        )
