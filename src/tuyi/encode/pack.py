"""Several encoded rows laid end to end, with nothing between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tuyi.encode.encoded import Encoded
from tuyi.encode.encoder import LabelTokens
from tuyi.vision.spec import ImagePatches, VideoPatches

__all__ = ["Branches", "Pack", "Visual", "group", "pack"]

Array = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Visual:
    """All pictures, or all videos, of a pack.

    Args:
        patches: uint8, shape (P, D).
        grids: int64, shape (N, 3).
        at: int64, shape (V,): the token that each visual feature replaces.
    """

    patches: NDArray[np.uint8]
    grids: Array
    at: Array


@dataclass(frozen=True, slots=True, eq=False)
class Branches:
    """Label continuations behind the prompts of a pack: every label of a row in its own branch.

    The tokens of all branches follow those of all prompts, a row's branches together. A branch sees its prompt
    and itself.

    Args:
        lengths: For each row the tokens of each of its branches.
        row_lengths: Tokens of all branches of each row.
    """

    lengths: tuple[tuple[int, ...], ...]

    @property
    def row_lengths(self) -> tuple[int, ...]:
        return tuple(sum(lengths) for lengths in self.lengths)


@dataclass(frozen=True, slots=True, eq=False)
class Pack:
    """Rows as one sequence without padding.

    Args:
        rows: The encoded rows.
        ids: int64, shape (T,).
        positions: int64, shape (4, T): the place within the row, then M-RoPE's three.
        lengths: Tokens of each row's own sequence; their sum is the number of root tokens.
        images, videos: Pixels and their places; None where the pack has none.
        keep: int64, shape (K,): tokens whose next token matters.
        targets: int64, shape (K,): that next token.
        weights: float32, shape (K,): its weight in the loss.
        branches: Label continuations; None in training.
    """

    rows: tuple[Encoded, ...]
    ids: Array
    positions: Array
    lengths: tuple[int, ...]
    images: Visual | None
    videos: Visual | None
    keep: Array
    targets: Array
    weights: NDArray[np.float32]
    branches: Branches | None = None

    @property
    def cu_seqlens(self) -> Array:
        """Cumulative row lengths, starting with 0."""
        return np.concatenate([[0], np.cumsum(self.lengths)])


def pack(rows: Sequence[Encoded], labels: Sequence[LabelTokens] | None = None) -> Pack:
    """Lay rows end to end.

    Args:
        rows: Encoded rows; for training each with its answer.
        labels: For prediction, the labels of each row's task; their continuations are laid behind the prompts.
    """
    lengths = tuple(len(row) for row in rows)
    starts = np.cumsum([0, *lengths])
    ids = [row.ids for row in rows]
    positions = [np.vstack([np.arange(len(row), dtype=np.int32)[None], row.positions]) for row in rows]
    if labels is None:
        answers = [np.flatnonzero(row.supervised) for row in rows]
        keep = np.concatenate([at - 1 + start for at, start in zip(answers, starts)])
        targets = np.concatenate([row.ids[at] for row, at in zip(rows, answers)])
        weights = np.concatenate([np.full(len(at), row.weight, np.float32) for row, at in zip(rows, answers)])
        branches = None
    else:
        branches, branch_ids, branch_positions, keep, targets = _branches(rows, labels, starts)
        ids.append(branch_ids)
        positions.append(branch_positions)
        weights = np.ones(len(keep), np.float32)
    return Pack(
        rows=tuple(rows),
        ids=np.concatenate(ids).astype(np.int64),
        positions=np.concatenate(positions, axis=1).astype(np.int64),
        lengths=lengths,
        images=_visual(rows, starts, ImagePatches),
        videos=_visual(rows, starts, VideoPatches),
        keep=keep.astype(np.int64),
        targets=targets.astype(np.int64),
        weights=weights,
        branches=branches,
    )


def _branches(
    rows: Sequence[Encoded], labels: Sequence[LabelTokens], starts: NDArray[np.int64]
) -> tuple[Branches, NDArray[np.int32], NDArray[np.int32], Array, Array]:
    """Branch tokens, their positions, and which tokens predict which, row by row and label by label.

    A label's first token is predicted by the last token of the prompt, the others by the branch's own tokens, so
    the kept positions of a row are, label after label, (prompt end, branch token 1, branch token 2, …).
    """
    ids: list[int] = []
    positions: list[NDArray[np.int32]] = []
    keep: list[int] = []
    targets: list[int] = []
    at = int(starts[-1])
    for row, answers, start in zip(rows, labels, starts):
        end = int(start) + len(row) - 1
        place = int(row.positions[:, -1].max())
        for answer in answers.ids:
            inner = len(answer) - 1
            ids.extend(answer[:-1])
            ahead = np.arange(1, inner + 1, dtype=np.int32)
            positions.append(np.vstack([len(row) - 1 + ahead, *[place + ahead] * 3]))
            keep.extend([end, *range(at, at + inner)])
            targets.extend(answer)
            at += inner
    branches = Branches(tuple(answers.branch_lengths for answers in labels))
    return (
        branches,
        np.asarray(ids, np.int32),
        np.concatenate(positions, axis=1),
        np.asarray(keep, np.int64),
        np.asarray(targets, np.int64),
    )


def _visual(
    rows: Sequence[Encoded], starts: NDArray[np.int64], kind: type[ImagePatches] | type[VideoPatches]
) -> Visual | None:
    found = [
        (item, int(start)) for row, start in zip(rows, starts) for item in row.media if isinstance(item.patches, kind)
    ]
    if not found:
        return None
    # order in the tower is free; equal sizes side by side are computed together where attention is dense
    found.sort(key=lambda pair: pair[0].patches.grid)
    return Visual(
        patches=np.concatenate([item.patches.values for item, _ in found]),
        grids=np.asarray([item.patches.grid for item, _ in found], np.int64),
        at=np.concatenate(
            [
                np.arange(begin + start, end + start, dtype=np.int64)
                for item, start in found
                for begin, end in item.spans
            ]
        ),
    )


Row = TypeVar("Row")


def group(rows: Iterable[tuple[Row, int]], budget: int) -> Iterator[list[Row]]:
    """Rows, in order, in groups whose sizes sum to at most ``budget``; a larger row stands alone."""
    group: list[Row] = []
    total = 0
    for row, size in rows:
        if group and total + size > budget:
            yield group
            group, total = [], 0
        group.append(row)
        total += size
    if group:
        yield group
