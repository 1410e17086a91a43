"""Going through rows that need a person's eye, and keeping what the person decides; knows nothing of pages."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from heapq import nsmallest
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from tuyi.data.fingerprint import MediaDigests
from tuyi.data.source import read
from tuyi.distill.corrections import fingerprint
from tuyi.encode.store import RowStore
from tuyi.errors import DataError, LabelError, MediaError
from tuyi.serve.web.corrections_file import CorrectionsFile
from tuyi.serve.web.row_states import Decision, Progress, Row, Suggestion, Why
from tuyi.serve.web.walks import Walk, Walks

if TYPE_CHECKING:
    from tuyi.data.example import Example
    from tuyi.data.options import ReadOptions
    from tuyi.task.catalog import TaskSet
    from tuyi.task.task import Task

__all__ = ["Labelling"]

_OURS = {"unlabelled", "disagrees"}
"""What the column ``why`` says of rows that no audit suspects."""
_RANKS: Mapping[Why, int] = {"changed": 0, "audit": 1, "unlabelled": 2, "disagrees": 3, "unread": 4}


class Labelling:
    """The rows, in which order they are looked at, and the file of decisions. Safe for threads.

    Args:
        rows: All rows with a closed task.
        tasks: What they are asked.
        file: Where decisions are kept.

    Raises:
        DataError: An id stands there twice, or no row has a closed task.
        TaskError: A row of none of the tasks.
    """

    def __init__(self, rows: RowStore, tasks: TaskSet, file: CorrectionsFile) -> None:
        self.tasks, self.file = tasks, file
        self._rows = rows
        self._lock = threading.RLock()
        self._at: dict[str, int] = {}
        self._given: dict[str, str] = {}
        for at, example in enumerate(rows):
            if example.id in self._at:
                raise DataError(f"duplicate id {example.id!r}; every row needs its own", example.place)
            self._at[example.id] = at
            self._given[example.id] = _given(example, tasks.of(example))
        self._revisions = dict.fromkeys(self._at, 0)
        self._audited = {id: rank for rank, id in enumerate(file.ids) if id in self._at and self._is_suspected(id)}
        self._changed = set(self._stale(file.ids))
        self._suggestions: dict[str, Suggestion] = {}
        self._walks = Walks()
        self._open: dict[str, None] = {}
        self._needy: dict[str, None] = {}
        for id in self._at:
            self._sort(id)
        self._unread = dict.fromkeys(sorted(self._open, key=lambda id: bool(self._given[id])))

    @classmethod
    def open(
        cls, data: str | Path, tasks: TaskSet, *, audit: Path | None = None, corrections: Path | None = None,
        options: ReadOptions | None = None,
    ) -> Labelling:  # fmt: skip
        """The rows of a data set.

        Args:
            data: Anything that ``tuyi.read`` reads; rows of open tasks are passed over.
            tasks: What its rows are asked.
            audit: Folder of an audit of it; its suspicious rows come first.
            corrections: File of decisions; the audit's, or ``DATA.corrections.csv`` beside the data where not given.
            options: How to read ``data``.

        Raises:
            DataError: A row that cannot be read, an id that stands there twice, no row to label.
            FormatError: The corrections file or the audit's is none.
            TaskError: A row that matches none of the tasks.
        """
        store = RowStore()
        for example in read(data, options):
            if tasks.of(example).labels is not None:
                store.append(example)
        if not len(store):
            raise DataError(f"{data} has no row of a task with labels: there is nothing to label")
        theirs = audit / "corrections.csv" if audit is not None else None
        if theirs is not None and not theirs.exists():
            raise DataError(f"{audit} has no corrections.csv; expected the folder of `tuyi audit DATA --out {audit}`")
        path = Path(data)
        file = CorrectionsFile(corrections or theirs or path.with_name(f"{path.name}.corrections.csv"))
        if theirs is not None and theirs.resolve() != file.path.resolve():
            file.begin_with(CorrectionsFile(theirs))
        return cls(store, tasks, file)

    def row(self, walk: str) -> Row | None:
        """The row before a person; None where no row needs a look, or none is known yet.

        Args:
            walk: A name for the person's way through the rows.
        """
        with self._lock:
            way = self._walks[walk]
            id = way.here or self._go_on(way)
            return None if id is None else self._seen(id)

    def decide(self, walk: str, id: str, decision: Decision, revision: int) -> bool:
        """Keep a decision, on the disk before this returns, and go on to the next row.

        Args:
            walk: The person's way.
            id: The row.
            decision: What the person says.
            revision: Of the row that the person saw.

        Returns:
            Whether it was taken; else somebody else decided about the row meanwhile, and it is shown again.

        Raises:
            DataError: No such row, or a picture of it that cannot be read any more.
            LabelError: No label of the task.
            FormatError: The file has been changed to something that is no corrections file; nothing is written.
            OutputError: The file cannot be written.
        """
        with self._lock:
            example, task = self._example(id)
            self._refresh()
            if self._revisions[id] != revision:
                return False
            assert task.labels is not None, "rows of open tasks are passed over"
            label = task.labels.canonical(decision.label) if decision.action == "change" else ""
            if label and label == self._given[id]:
                decision, label = Decision("keep"), ""
            cells = self._cells(example, task) | {"action": decision.action, "new_label": label}
            self.file.write(id, cells)
            self._changed.discard(id)
            self._is_new(id)
            way = self._walks[walk]
            way.decided(id, self._revisions[id])
            while (here := self._go_on(way)) is not None and (here not in self._open or here in way.skipped):
                pass
            return True

    def skip(self, walk: str, id: str) -> None:
        """Put a row off and go on to the next; of a row that was decided, only go on."""
        with self._lock:
            way = self._walks[walk]
            if way.here == id:
                if id in self._open:
                    way.skipped.add(id)
                self._go_on(way)

    def back(self, walk: str) -> None:
        """Go back to the row before; what was decided about it stays until something else is."""
        with self._lock:
            self._walks[walk].back()

    def undo(self, walk: str) -> bool:
        """Take back this person's last decision, on the disk too, and go back to its row.

        Returns:
            Whether there was one that nobody has changed since.

        Raises:
            FormatError, OutputError: As :meth:`decide`.
        """
        with self._lock:
            way = self._walks[walk]
            if way.last is None:
                return False
            id, revision = way.last
            self._refresh()
            is_mine = self._revisions[id] == revision
            if is_mine:
                self.file.write(id, {"action": "", "new_label": ""} if id in self._audited else None)
                self._is_new(id)
            way.undone(id)
            return is_mine

    def again(self, walk: str) -> None:
        """Show the rows that were put off once more."""
        with self._lock:
            way = self._walks[walk]
            way.skipped.clear()
            self._go_on(way)

    def progress(self, walk: str) -> Progress:
        """How far the work is."""
        with self._lock:
            way = self._walks[walk]
            done, rows = len(self._at) - len(self._open), len(self._at)
            skipped = sum(id in self._open for id in way.skipped)
            return Progress(done, done + len(self._needy), rows - len(self._unread), rows, skipped, way.rate())

    def suggest(self, id: str, suggestion: Suggestion) -> None:
        """Keep what the model says of a row."""
        ranked = dict(sorted(suggestion.probabilities.items(), key=lambda item: -item[1]))
        with self._lock:
            self._suggestions[id] = Suggestion(ranked, suggestion.rationale, suggestion.problem)
            self._unread.pop(id, None)
            self._sort(id)

    def wanted(self, most: int) -> list[Example]:
        """The next rows that the model is to read: those before people, those that come next, then all others."""
        with self._lock:
            ids: dict[str, None] = {}
            for id in chain(self._walks.held(), self._next(most), self._unread):
                if id not in self._suggestions:
                    ids[id] = None
                if len(ids) == most:
                    break
            return [self._rows[self._at[id]] for id in ids]

    def example(self, id: str) -> Example:
        """The row of this id.

        Raises:
            DataError: There is none.
        """
        return self._example(id)[0]

    def task_of(self, example: Example) -> Task:
        """What a row is asked."""
        return self.tasks.of(example)

    # ---- which rows, in which order

    def _next(self, most: int) -> list[str]:
        """The rows that come next for whoever comes."""
        held = self._walks.held()
        return nsmallest(most, (id for id in self._needy if id not in held), key=self._order)

    def _go_on(self, way: Walk) -> str | None:
        """The next row of a way; further on in its trail, or the best that nobody else looks at."""
        if (id := way.forth()) is not None:
            return id
        held = self._walks.held()
        found = (id for id in self._needy if id not in held and id not in way.skipped)
        id = min(found, key=self._order, default=None)
        way.arrive(id)
        return id

    def _sort(self, id: str) -> None:
        """Note anew whether a row has a decision, and whether it is known to need a look."""
        line = self.file.line(id)
        is_open = id in self._changed or line is None or not line["action"].strip()
        for belongs, rows in ((is_open, self._open), (is_open and self._why(id) is not None, self._needy)):
            if belongs:
                rows[id] = None
            else:
                rows.pop(id, None)

    def _is_new(self, id: str) -> None:
        """Somebody decided about a row, or took the decision back."""
        self._revisions[id] += 1
        self._sort(id)

    def _why(self, id: str) -> Why | None:
        if id in self._changed:
            return "changed"
        if id in self._audited:
            return "audit"
        suggestion, given = self._suggestions.get(id), self._given[id]
        if suggestion is None:
            return None
        if not given:
            return "unlabelled" if suggestion.probabilities else "unread"
        return "disagrees" if suggestion.probabilities and suggestion.first != given else None

    def _order(self, id: str) -> tuple[float, ...]:
        why = self._why(id)
        assert why is not None, "only rows that need a look are ordered"
        sure = next(iter(self._suggestions[id].probabilities.values()), 0.0) if id in self._suggestions else 0.0
        within = {"audit": self._audited.get(id, 0), "unlabelled": sure, "disagrees": -sure}.get(why, 0.0)
        return _RANKS[why], within, self._at[id]

    # ---- what is known of a row

    def _example(self, id: str) -> tuple[Example, Task]:
        if id not in self._at:
            raise DataError(f"the data has no row {id!r}")
        example = self._rows[self._at[id]]
        return example, self.tasks.of(example)

    def _seen(self, id: str) -> Row:
        example, task = self._example(id)
        line = self.file.line(id) or {}
        suspected = None
        if id in self._audited and line.get("suggested_label"):
            suspected = (line["suggested_label"], line.get("confidence", ""))
        return Row(
            example=example,
            task=task,
            given=self._given[id],
            why=self._why(id) or ("disagrees" if self._given[id] else "unlabelled"),
            suggestion=self._suggestions.get(id),
            suspected=suspected,
            decision=self._decision(id),
            revision=self._revisions[id],
        )

    def _decision(self, id: str) -> Decision | None:
        line = self.file.line(id)
        if line is None or id in self._changed:
            return None
        action = line["action"].strip().lower()
        label = line.get("new_label", "").strip() or line["suggested_label"]
        return Decision(action, label if action == "change" else "") if action else None  # type: ignore[arg-type]

    def _cells(self, example: Example, task: Task) -> dict[str, str]:
        """What the line of a row says besides the decision; an audit's own words stay."""
        cells = {"task": task.name, "given_label": self._given[example.id]}
        cells["seen"] = fingerprint(example, MediaDigests())
        if example.id in self._audited:
            return cells
        suggestion = self._suggestions.get(example.id, Suggestion())
        sure = suggestion.probabilities.get(suggestion.first)
        told = {"suggested_label": suggestion.first, "confidence": "" if sure is None else f"{sure:.4f}"}
        return cells | told | {"why": "disagrees" if self._given[example.id] else "unlabelled"}

    def _refresh(self) -> None:
        for id in self.file.refresh():
            if id in self._at:
                self._is_new(id)

    def _is_suspected(self, id: str) -> bool:
        line = self.file.line(id) or {}
        return not _OURS & set(line.get("why", "").split())

    def _stale(self, ids: list[str]) -> Iterator[str]:
        """Rows that were decided about and show something else now."""
        digests = MediaDigests()
        for id in ids:
            line = self.file.line(id) or {}
            if id not in self._at or not line.get("action", "").strip():
                continue
            try:
                now = fingerprint(self._rows[self._at[id]], digests)
            except MediaError:
                now = ""  # a picture that was there is not now
            if now != line["seen"].strip():
                yield id


def _given(example: Example, task: Task) -> str:
    """The label of a row in the task's spelling, or its own where it is none of the task's; empty without one."""
    if example.label is None:
        return ""
    assert task.labels is not None, "rows of open tasks are passed over"
    try:
        return task.labels.canonical(example.label)
    except LabelError:
        return example.label
