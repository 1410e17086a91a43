"""A new data set in which an audit's corrections are made; the old one stays as it is."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tuyi.data.example import Example
from tuyi.data.fingerprint import MediaDigests
from tuyi.data.options import ReadOptions
from tuyi.data.source import find_source, read
from tuyi.data.write import SUFFIXES, ExampleWriter, WriteFormat
from tuyi.distill.corrections import Action, Correction, fingerprint, read_corrections
from tuyi.errors import ConfigError, DataError, FormatError, LabelError, OutputError
from tuyi.whole import write_whole

if TYPE_CHECKING:
    from tuyi.task.catalog import TaskSet

__all__ = ["Applied", "apply_corrections"]


@dataclass(frozen=True, slots=True)
class Applied:
    """What corrections made of a data set.

    Args:
        out: The new data file.
        rows: Rows that it has.
        changed: Rows that got another label.
        dropped: Rows that were left out.
        kept: Rows that somebody looked at and kept.
        open: Issues that nothing was decided about; their rows stay as they are.
        automatic: Of the changed rows, those that took a suggestion unseen.
        unproven: Changed rows that lost a reason or a teacher's distribution, which spoke for the old label.
    """

    out: Path
    rows: int
    changed: int
    dropped: int
    kept: int
    open: int
    automatic: int
    unproven: int


def apply_corrections(
    data: str | Path,
    corrections: str | Path,
    out: str | Path,
    *,
    tasks: TaskSet,
    apply_suggested: float | None = None,
    options: ReadOptions | None = None,
) -> Applied:
    """Write a new data set in which the corrections are made; the old one stays as it is.

    Beside ``out``, ``out`` + ``.corrections.json`` says what was done to which row.

    Args:
        data: The data that was audited.
        corrections: The corrections file.
        out: A new file: ``.jsonl`` for messages, ``.json`` where the data is in a format written as ``.json``.
        tasks: The tasks that were audited; new labels must be theirs.
        apply_suggested: Take the suggestion of undecided lines whose confidence is at least this; rare labels excepted.
        options: How to read ``data``.

    Raises:
        OutputError: ``out`` is there already.
        ConfigError: A threshold that is none.
        FormatError: The corrections cannot be read.
        LabelError: A label outside the task's set.
        DataError: An id that the data lacks, or a row that changed since the audit.
    """
    source, out = Path(data), Path(out)
    if apply_suggested is not None and not 0 <= apply_suggested <= 1:
        raise ConfigError(f"--apply-suggested: expected a probability from 0 to 1, found {apply_suggested:g}")
    record = out.with_name(out.name + ".corrections.json")
    _check_free(out, record)
    lines = {one.id: one for one in read_corrections(Path(corrections))}
    decided = _decide(lines.values(), apply_suggested)
    maker = _Maker(lines, decided, tasks)
    with ExampleWriter(out, _format(source, out, options)) as writer:
        for example in read(source, options):
            new = maker.make(example)
            if new is not None:
                writer.write(new)
        if unknown := [lines[id] for id in decided if id not in maker.seen]:
            raise DataError(
                f"{len(unknown)} of {len(decided)} corrected ids are not in {source} (first: {unknown[0].id!r}); is it "
                "the data that was audited? A spreadsheet may have changed ids: it takes 0012 for the number 12 "
                "unless the column is read as text",
                unknown[0].place,
            )
    actions = Counter(action for action, _ in decided.values())
    applied = Applied(
        out=out,
        rows=writer.rows,
        changed=actions["change"],
        dropped=actions["drop"],
        kept=actions["keep"],
        open=len(lines) - len(decided),
        automatic=sum(action == "change" and lines[id].action == "" for id, (action, _) in decided.items()),
        unproven=maker.unproven,
    )
    write_whole(record, _record(source, Path(corrections), applied, decided, lines))
    return applied


def _check_free(*files: Path) -> None:
    for file in files:
        if file.exists():
            raise OutputError(f"{file} is already there; the corrected data goes into a new file: choose another --out")


def _decide(lines: Iterable[Correction], threshold: float | None) -> dict[str, tuple[Action, str]]:
    """For each id that something is done about: what, and the label to set."""
    decided: dict[str, tuple[Action, str]] = {}
    for line in lines:
        action = line.action
        sure = threshold is not None and not line.rare and (line.confidence or 0.0) >= threshold
        if not action and sure and line.suggested:
            action = "change"
        label = line.new_label or line.suggested
        if action == "change" and not label:
            raise FormatError("action change: expected a new_label or a suggested_label, found neither", line.place)
        if action:
            decided[line.id] = (action, label)
    return decided


class _Maker:
    """Makes the new rows of the old ones."""

    def __init__(
        self, lines: Mapping[str, Correction], decided: Mapping[str, tuple[Action, str]], tasks: TaskSet
    ) -> None:
        self._lines, self._decided, self._tasks = lines, decided, tasks
        self._digests = MediaDigests()
        self.seen: set[str] = set()
        self.unproven = 0

    def make(self, example: Example) -> Example | None:
        """The row as it will be written; None where it is left out."""
        if example.id not in self._decided:
            return example
        if example.id in self.seen:
            raise DataError(f"id {example.id!r} stands in the data twice, so it cannot be corrected", example.place)
        self.seen.add(example.id)
        action, label = self._decided[example.id]
        if action == "keep":
            return example
        self._check(example, self._lines[example.id])
        if action == "drop":
            return None
        self.unproven += example.rationale is not None or example.soft is not None
        return replace(example, label=self._spelled(example, label), rationale=None, soft=None)

    def _check(self, example: Example, line: Correction) -> None:
        try:
            now = fingerprint(example, self._digests)
        except DataError as error:
            error.at(example.place)
            raise
        if now != line.seen:
            labels = self._tasks.of(example).labels
            told = example.label if example.label is None or labels is None else labels.canonical(example.label)
            what = (
                f"its label was {line.given!r} and is {told!r} now"
                if (told or "") != line.given
                else "it shows something else"
            )
            raise DataError(
                f"the row has changed since the audit: {what}; audit the data as it is now, or correct the data that "
                "was audited",
                example.place,
            )

    def _spelled(self, example: Example, label: str) -> str:
        task = self._tasks.of(example)
        if task.labels is None:
            raise DataError(f"task {task.name} is open and has no labels to correct", example.place)
        try:
            return task.labels.canonical(label)
        except LabelError as error:
            raise error.at(self._lines[example.id].place) from None


def _format(source: Path, out: Path, options: ReadOptions | None) -> WriteFormat:
    """The source's own format where ``out`` is called like it, else messages."""
    found = find_source(source, options).format
    if out.suffix.lower() in (".jsonl", ".ndjson"):
        return "messages"
    if SUFFIXES.get(found) == out.suffix.lower():
        return found  # type: ignore[return-value]
    raise OutputError(f"{out}: expected a name ending in .jsonl, which rows in {found} format are corrected to")


def _record(
    source: Path,
    file: Path,
    applied: Applied,
    decided: Mapping[str, tuple[Action, str]],
    lines: Mapping[str, Correction],
) -> str:
    """What was done, for people who find the new file later."""
    rows = [
        {
            "id": id,
            "action": action,
            "given_label": lines[id].given,
            **({"label": label} if action == "change" else {}),
            "automatic": lines[id].action == "",
        }
        for id, (action, label) in decided.items()
    ]
    counts = {name: value for name, value in asdict(applied).items() if name != "out"}
    value = {"data": str(source), "corrections": str(file), "out": str(applied.out), **counts, "changes": rows}
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"
