"""Parts of a data set that share no picture: stratified by task and label, the same for the same seed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuyi.data.example import Example, Image, Video
from tuyi.data.fingerprint import MediaDigests, digest, own_text_digest
from tuyi.data.options import ReadOptions
from tuyi.data.source import find_source, read
from tuyi.data.stratify import Stratum, divide
from tuyi.data.write import SUFFIXES, WRITABLE, ExampleWriter, WriteFormat
from tuyi.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tuyi.task import Task, TaskSet

__all__ = ["SplitReport", "split", "strata_and_groups"]

UNLABELLED = "(unlabelled)"
NO_TASK = "(no task)"


@dataclass(frozen=True, slots=True)
class SplitReport:
    """What went where.

    Args:
        files: The file of each part.
        counts: Rows of each part, by task and label.
        groups: Sets of rows that had to stay together, singles included.
        largest_group: Rows of the largest of them.
    """

    files: Mapping[str, Path]
    counts: Mapping[str, Mapping[Stratum, int]]
    groups: int
    largest_group: int

    @property
    def missing(self) -> list[tuple[Stratum, str]]:
        """Labels that a part has no row of, and the part; too few rows to go round."""
        strata = sorted({stratum for counts in self.counts.values() for stratum in counts})
        return [
            (stratum, part) for stratum in strata for part, counts in self.counts.items() if not counts.get(stratum)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "files": {part: str(file) for part, file in self.files.items()},
            "counts": {part: _nested(counts) for part, counts in self.counts.items()},
            "missing": [{"task": task, "label": label, "part": part} for (task, label), part in self.missing],
            "groups": self.groups,
            "largest_group": self.largest_group,
        }


def _nested(counts: Mapping[Stratum, int]) -> dict[str, dict[str, int]]:
    tasks: dict[str, dict[str, int]] = {}
    for (task, label), rows in sorted(counts.items()):
        tasks.setdefault(task, {})[label] = rows
    return tasks


def split(
    source: str | Path,
    out_dir: str | Path,
    parts: Mapping[str, float],
    *,
    seed: int = 0,
    tasks: TaskSet | None = None,
    options: ReadOptions | None = None,
    force: bool = False,
    copy_media: bool = False,
) -> SplitReport:
    """Divide a data file into parts.

    Rows that share a picture or video (the same bytes) or a text of their own stay on one side. Every task and label
    is divided in the given proportions as closely as that allows; a label with a single row goes to the largest part.

    Args:
        source: Anything that :func:`tuyi.data.read` reads.
        out_dir: Folder for one file a part, in the source's format where that can be written, else as messages.
        parts: Share of each part, such as ``{"train": 0.8, "test": 0.2}``; together 1.
        seed: Another seed gives another division.
        tasks: Tells rows' tasks and unifies spellings of labels.
        options: How to read the source.
        force: Replace files that are there.
        copy_media: Copy pictures and videos into ``out_dir``.

    Raises:
        ConfigError: Shares that are not positive or not together 1.
        DataError: A row that cannot be read, a picture that is missing, a label outside the task.
        OutputError: A file is taken or cannot be written.
    """
    _check_parts(parts)
    strata, groups = strata_and_groups(read(source, options), tasks)
    sides = divide(strata, groups, list(parts.values()), seed)
    found = find_source(source, options).format
    format: WriteFormat = found if found in WRITABLE else "messages"  # type: ignore[assignment]
    names = list(parts)
    writers = [ExampleWriter(Path(out_dir) / f"{name}{SUFFIXES[format]}", format, force, copy_media) for name in names]
    counts: list[Counter[Stratum]] = [Counter() for _ in names]
    _write(read(source, options), sides, writers, counts, strata)
    sizes = Counter(groups)
    return SplitReport(
        files={name: writer.out for name, writer in zip(names, writers)},
        counts={name: dict(count) for name, count in zip(names, counts)},
        groups=len(sizes),
        largest_group=max(sizes.values()),
    )


def _check_parts(parts: Mapping[str, float]) -> None:
    if len(parts) < 2:
        raise ConfigError(f"expected two parts or more, such as train=0.8,test=0.2; found {dict(parts)}")
    if wrong := [name for name in parts if not name or any(sign in name for sign in "/\\.")]:
        raise ConfigError(f"the part {wrong[0]!r} cannot be a file name; use letters, digits, - and _")
    if any(not share > 0 for share in parts.values()) or not math.isclose(sum(parts.values()), 1, abs_tol=1e-6):
        raise ConfigError(f"expected shares above 0 that make 1 together, found {dict(parts)}, {sum(parts.values()):g}")


def strata_and_groups(
    examples: Iterable[Example], tasks: TaskSet | None, digests: MediaDigests | None = None
) -> tuple[list[Stratum], list[int]]:
    """For each row its task and label, and a number that rows share which show one picture, video or text of their own.

    Args:
        examples: The rows.
        tasks: Tells rows' tasks and unifies spellings of labels.
        digests: Hashes of media that are known already; those found here are added.

    Raises:
        DataError: A row of no task, a label outside it, or media that cannot be read.
    """
    digests = digests or MediaDigests()
    strata: list[Stratum] = []
    known: dict[Stratum, Stratum] = {}
    parent: list[int] = []
    owner: dict[int, int] = {}
    for row, example in enumerate(examples):
        parent.append(row)
        try:
            task = tasks.of(example) if tasks is not None else None
            stratum = _stratum(example, task)
            keys = [digests.of(part) for part in example.parts if isinstance(part, Image | Video)]
        except DataError as error:
            error.at(example.place)
            raise
        strata.append(known.setdefault(stratum, stratum))
        text = own_text_digest(example, task)
        if text is not None:
            keys.append(digest(f"text {text}"))
        for key in keys:
            parent[_root(parent, owner.setdefault(key, row))] = _root(parent, row)
    return strata, [_root(parent, row) for row in range(len(parent))]


def _stratum(example: Example, task: Task | None) -> Stratum:
    label = example.label
    if label is not None and task is not None and task.labels is not None:
        label = task.labels.canonical(label)
    return (task.name if task is not None else example.task or NO_TASK, UNLABELLED if label is None else label)


def _root(parent: list[int], row: int) -> int:
    while parent[row] != row:
        parent[row] = parent[parent[row]]
        row = parent[row]
    return row


def _write(
    examples: Iterator[Example],
    sides: list[int],
    writers: list[ExampleWriter],
    counts: list[Counter[Stratum]],
    strata: list[Stratum],
) -> None:
    with ExitStack() as stack:
        for writer in writers:
            stack.enter_context(writer)
        for example, side, stratum in zip(examples, sides, strata, strict=True):
            writers[side].write(example)
            counts[side][stratum] += 1
