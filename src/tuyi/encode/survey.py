"""The look at every row before a model is loaded: its size, and whether it can be used at all."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from tuyi.data.example import Example
from tuyi.data.problem import Problem
from tuyi.encode.encoder import Encoder
from tuyi.encode.store import RowStore
from tuyi.errors import DataError, TaskError

__all__ = ["OnBadRow", "Survey", "survey"]

OnBadRow: TypeAlias = Literal["stop", "skip"]

_SHOWN = 10


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """The usable rows of a data set and their sizes.

    Args:
        rows: The examples, by number.
        tokens, patches, supervised: Sizes of each, as :class:`~tuyi.encode.encoder.Length` says.
        weights: Weight of each in the loss.
        skipped: What is wrong with the rows that were left out, each with file, row and id.
    """

    rows: RowStore
    tokens: array[int]
    patches: array[int]
    supervised: array[int]
    weights: array[float]
    skipped: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)


def survey(
    examples: Iterable[Example | Problem],
    encoder: Encoder,
    *,
    labelled: bool,
    on_bad_row: OnBadRow = "stop",
    wanted: Callable[[Example], bool] = lambda example: True,
) -> Survey:
    """Look at every row: file headers, label, placeholders, token length.

    Args:
        examples: Rows and problems, as ``tuyi.data.scan`` yields them.
        encoder: Of the model that will read them.
        labelled: Whether each row must bring an answer.
        on_bad_row: Whether one bad row stops everything, or is left out and named.
        wanted: Rows for which this is false are left out without being looked at.

    Raises:
        DataError: Bad rows, all of them counted and the first ten shown.
    """
    found = Survey(RowStore(), array("l"), array("l"), array("l"), array("d"), ())
    bad: list[str] = []
    seen: set[int] = set()
    for item in examples:
        if isinstance(item, Problem):
            bad.append(str(item))
            continue
        if hash(item.id) in seen:
            bad.append(f"{item.place}: duplicate id {item.id!r}; every row needs its own")
            continue
        seen.add(hash(item.id))
        if not wanted(item):
            continue
        try:
            if labelled and item.label is None:
                raise DataError("expected a label, found none; leave unlabelled rows to `tuyi predict`", item.place)
            length = encoder.length(item, labelled=labelled)
        except (DataError, TaskError) as error:
            bad.append(str(error))
            continue
        found.rows.append(item)
        found.tokens.append(length.tokens)
        found.patches.append(length.patches)
        found.supervised.append(length.supervised)
        found.weights.append(item.weight)
    if bad and on_bad_row == "stop":
        more = f"\n… and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise DataError(
            f"{len(bad)} row{'s' if len(bad) > 1 else ''} cannot be used:\n"
            + "\n".join(bad[:_SHOWN])
            + more
            + "\nMend them (`tuyi check` lists them all), or pass --on-bad-row skip to leave them out"
        )
    return replace(found, skipped=tuple(bad))
