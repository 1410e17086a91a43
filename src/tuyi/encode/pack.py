"""Several encoded rows laid end to end, with nothing between them."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tuyi.encode.encoded import Encoded, Media
from tuyi.encode.encoder import LabelTokens
from tuyi.vision.spec import ImagePatches, VideoPatches

__all__ = ["Branches", "Pack", "Visual", "group", "pack", "pack_prompts"]

Array = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Visual:
    """All pictures, or all videos, of a pack; equal ones once.

    Args:
        patches: uint8, each of shape (P_i, D): what passes the tower.
        grids: int64, shape (N, 3): of the same.
        new: Of the same, the key and the number of features.
        known: The same of those whose features are there already.
        at: int64, shape (V,): the token that each visual feature replaces.
        features: int64, shape (V,): which feature stands there, counting the tower's output, then the known ones.
    """

    patches: tuple[NDArray[np.uint8], ...]
    grids: Array
    new: tuple[tuple[bytes | None, int], ...]
    known: tuple[tuple[bytes, int], ...]
    at: Array
    features: Array

    def uses(self) -> Iterator[tuple[bytes, int]]:
        """Keys of all that the pack shows, with the number of features of each."""
        yield from self.known
        yield from ((key, count) for key, count in self.new if key is not None)


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
    """Rows as one sequence without padding: the prefix that they share, their own tokens, their label branches.

    Args:
        rows: The encoded rows.
        ids: int64, shape (T,).
        positions: int64, shape (4, T): the place within the row, then M-RoPE's three.
        shared: Tokens at the start that belong to every row; 0 in training.
        lengths: Tokens of each row's own part.
        images, videos: Pixels and their places; None where the pack has none.
        keep: int64, shape (K,): tokens whose next token matters, each once.
        read: int64, shape (N,): for each target the kept token that predicts it, as its place in ``keep``; ascending.
        targets: int64, shape (N,): the next tokens.
        order: int64, shape (N,): where each target stands in reading order: row by row, label by label.
        weights: float32, shape (N,): weight of each target in the loss.
        branches: Label continuations; None where rows stand with their answers.
    """

    rows: tuple[Encoded, ...]
    ids: Array
    positions: Array
    shared: int
    lengths: tuple[int, ...]
    images: Visual | None
    videos: Visual | None
    keep: Array
    read: Array
    targets: Array
    order: Array
    weights: NDArray[np.float32]
    branches: Branches | None = None


def pack(
    rows: Sequence[Encoded],
    labels: Sequence[LabelTokens] | None = None,
    known: Container[bytes] = (),
    shares: Sequence[NDArray[np.float32]] | None = None,
    *,
    apart: bool = False,
) -> Pack:
    """Lay rows end to end.

    Args:
        rows: Encoded rows; for training each with its answer, except where ``shares`` say what it is taught.
        labels: The labels of each row's task, where all are scored; their continuations are laid behind the prompts,
            and in prediction a beginning that all prompts share stands once.
        known: Keys of the media whose features need not be computed.
        shares: The distribution over its labels that each row is taught: a label's targets weigh the row's weight times
            its share, and what its prompt has of earlier answers the row's weight. Without, each target weighs 1.
        apart: Whether rows share no beginning, though they begin with the same tokens.
    """
    shared = 0 if apart or labels is None or shares is not None else _shared(rows)
    lengths = tuple(len(row) - shared for row in rows)
    starts = shared + np.cumsum([0, *lengths])  # a row's token i stands at its start + i - shared
    ids = [rows[0].ids[:shared], *(row.ids[shared:] for row in rows)]
    places = [_places(row) for row in rows]
    positions = [places[0][:, :shared], *(place[:, shared:] for place in places)]
    if labels is None:
        answers = [np.flatnonzero(row.supervised) for row in rows]
        keep = np.concatenate([at - 1 + start for at, start in zip(answers, starts)])
        targets = np.concatenate([row.ids[at] for row, at in zip(rows, answers)])
        weights = np.concatenate([np.full(len(at), row.weight, np.float32) for row, at in zip(rows, answers)])
        read = order = np.arange(len(keep))
        branches = None
    else:
        laid = _branches(rows, labels, starts, learned=shares is not None)
        branches = Branches(tuple(answers.branch_lengths for answers in labels))
        ids.append(laid.ids)
        positions.append(laid.positions)
        keep, first = np.unique(laid.keep, return_inverse=True)
        order = np.argsort(first, kind="stable")
        read, targets = first[order], laid.targets[order]
        weights = np.ones(len(targets), np.float32) if shares is None else _weights(rows, labels, shares)[order]
    return Pack(
        rows=tuple(rows),
        ids=np.concatenate(ids).astype(np.int64),
        positions=np.concatenate(positions, axis=1).astype(np.int64),
        shared=shared,
        lengths=lengths,
        images=_visual(rows, starts - shared, ImagePatches, known),
        videos=_visual(rows, starts - shared, VideoPatches, known),
        keep=keep.astype(np.int64),
        read=read.astype(np.int64),
        targets=targets.astype(np.int64),
        order=order.astype(np.int64),
        weights=weights,
        branches=branches,
    )


_ONWARD = LabelTokens(("",), ((0,),))  # one token behind the prompt, whichever


def pack_prompts(rows: Sequence[Encoded], known: Container[bytes] = (), *, apart: bool = False) -> Pack:
    """Lay rows end to end that will be gone on with: of each, what follows its last token counts.

    Args:
        rows: Encoded rows.
        known, apart: As for :func:`pack`.
    """
    return pack(rows, [_ONWARD] * len(rows), known, apart=apart)


def _places(row: Encoded) -> NDArray[np.int32]:
    return np.vstack([np.arange(len(row), dtype=np.int32)[None], row.positions])


_WORTH = 8  # a shorter prefix costs more to look up in every layer than it saves


def _shared(rows: Sequence[Encoded]) -> int:
    """Tokens that all rows begin with, before any of their pictures and without any row's last."""
    if len(rows) < 2:
        return 0
    first = rows[0].ids
    common = min(min((span[0] for media in row.media for span in media.spans), default=len(row) - 1) for row in rows)
    for row in rows[1:]:
        differ = np.flatnonzero(row.ids[:common] != first[:common])
        common = int(differ[0]) if len(differ) else common
    return common if common >= _WORTH else 0


def _weights(
    rows: Sequence[Encoded], labels: Sequence[LabelTokens], shares: Sequence[NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Weight of each label token, row by row and label by label, then of the earlier answers in each row's prompt."""
    each = []
    for row, answers, share in zip(rows, labels, shares, strict=True):
        each.append(np.repeat(row.weight * share, [len(ids) for ids in answers.ids]))
        each.append(np.full(int(row.supervised.sum()), row.weight))
    return np.concatenate(each).astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class _Laid:
    """Branch tokens, their positions, and which tokens predict which, row by row and label by label."""

    ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    keep: Array
    targets: Array


def _branches(
    rows: Sequence[Encoded], labels: Sequence[LabelTokens], starts: NDArray[np.int64], *, learned: bool
) -> _Laid:
    """Label branches behind the prompts.

    A label's first token is predicted by the last token of the prompt, the others by the branch's own tokens, so
    the kept positions of a row are, label after label, (prompt end, branch token 1, branch token 2, …). Behind them
    come those of earlier answers in the prompt, where they are learned.
    """
    ids: list[int] = []
    positions: list[NDArray[np.int32]] = []
    keep: list[int] = []
    targets: list[int] = []
    at = int(starts[-1])
    for row, answers, before, after in zip(rows, labels, starts, starts[1:]):
        end = int(after) - 1
        place = int(row.positions[:, -1].max())
        for answer in answers.ids:
            inner = len(answer) - 1
            ids.extend(answer[:-1])
            ahead = np.arange(1, inner + 1, dtype=np.int32)
            positions.append(np.vstack([len(row) - 1 + ahead, *[place + ahead] * 3]))
            keep.extend([end, *range(at, at + inner)])
            targets.extend(answer)
            at += inner
        earlier = np.flatnonzero(row.supervised) if learned else np.empty(0, np.int64)
        keep.extend((earlier - 1 + int(before)).tolist())
        targets.extend(row.ids[earlier].tolist())
    return _Laid(
        np.asarray(ids, np.int32),
        np.concatenate(positions, axis=1),
        np.asarray(keep, np.int64),
        np.asarray(targets, np.int64),
    )


def _visual(
    rows: Sequence[Encoded],
    starts: NDArray[np.int64],
    kind: type[ImagePatches] | type[VideoPatches],
    known: Container[bytes],
) -> Visual | None:
    """The media of one kind; ``starts`` says for each row where its token 0 stands, or would."""
    found = [
        (item, int(start)) for row, start in zip(rows, starts) for item in row.media if isinstance(item.patches, kind)
    ]
    if not found:
        return None
    # order in the tower is free; equal sizes side by side are computed together where attention is dense
    found.sort(key=lambda pair: (pair[0].key in known, pair[0].patches.grid))
    first: dict[object, Media] = {}  # what has no key is equal to nothing but itself
    for item, _ in found:
        first.setdefault(item.key or id(item), item)
    begins = dict(zip(first, np.cumsum([0, *map(_features, first.values())])))
    new = [item for item in first.values() if item.key not in known]
    return Visual(
        patches=tuple(item.patches.values for item in new),
        grids=np.asarray([item.patches.grid for item in new], np.int64).reshape(-1, 3),
        new=tuple((item.key, _features(item)) for item in new),
        known=tuple((item.key, _features(item)) for item in first.values() if item.key and item.key in known),
        at=np.concatenate(
            [np.arange(begin + start, end + start) for item, start in found for begin, end in item.spans]
        ),
        features=np.concatenate([begins[item.key or id(item)] + np.arange(_features(item)) for item, _ in found]),
    )


def _features(item: Media) -> int:
    """Visual tokens of a picture or video."""
    return sum(end - begin for begin, end in item.spans)


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
