"""Decoding with a cache: many rows together, each token once, no padding; rows come and go between steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tuyi.encode.encoded import Encoded, Media
from tuyi.encode.encoder import LabelTokens
from tuyi.encode.pack import Pack, pack, pack_prompts
from tuyi.model.cache import Cached, Continuing, Filling, KeyValueCache, Room
from tuyi.model.forward import Batch, on_device, to_device
from tuyi.model.kept import Store
from tuyi.model.layout import Layout
from tuyi.model.load import Model
from tuyi.model.steps import Steps

__all__ = ["Decoder", "Live", "common_tokens", "extended"]

_ROWS_OF_LOGITS = 512


@dataclass(eq=False, slots=True)
class Live:
    """A row whose keys and values lie in the cache.

    Args:
        room: Where.
        ids: Tokens that are there, in order.
        place: M-RoPE position of the last of them, the same in time, height and width, as it is text.
        media: First token and key of each picture or video.
    """

    room: Room
    ids: list[int]
    place: int
    media: tuple[tuple[int, bytes | None], ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def left(self) -> int:
        """Tokens for which its room still has space."""
        return self.room.size - len(self.ids)


def extended(row: Encoded, ids: Sequence[int]) -> Encoded:
    """An encoded prompt with tokens of text behind it."""
    text = _text(ids, int(row.positions[:, -1].max()) + 1)
    return replace(
        row,
        ids=np.concatenate([row.ids, text.ids]),
        supervised=np.concatenate([row.supervised, text.supervised]),
        positions=np.concatenate([row.positions, text.positions], axis=1),
    )


class Decoder:
    """Lets rows go on token by token, all of them together.

    Rows :meth:`join` with their prompts, go on with :meth:`extend` (text tokens) or :meth:`append` (anything encoded),
    and :meth:`leave`. In between, their answers can be scored label by label with :meth:`branch`, and others begin as
    they do with :meth:`fork`.

    Args:
        model: The model.
        tokens: Tokens of all rows together that the cache has room for.
    """

    def __init__(self, model: Model, tokens: int) -> None:
        self.model = model
        self._device: torch.device = model.device
        self.cache = KeyValueCache(model.hf.config, tokens)
        self._steps = Steps(model, self.cache)

    @torch.inference_mode()
    def join(
        self, rows: Sequence[Encoded], more: Sequence[int], *, kept: Store | None = None,
        ready: tuple[Pack, Batch] | None = None,
    ) -> tuple[list[Live], Tensor] | None:  # fmt: skip
        """Let rows pass the model as prompts and keep them.

        Args:
            rows: Encoded prompts.
            more: Tokens that may follow each.
            kept: Visual features of earlier passes, and where new ones go.
            ready: The same rows as :func:`~tuyi.encode.pack.pack_prompts` lays them, and on the device already.

        Returns:
            The rows, and logits of the token behind each, float32, shape (rows, vocabulary); None, and nothing done,
            where the cache has no room for all of them.
        """
        rooms = self.cache.take([len(row) + extra for row, extra in zip(rows, more, strict=True)])
        if rooms is None:
            return None
        packed = pack_prompts(rows) if ready is None else ready[0]
        batch = to_device(packed, self.model.spec, self._device) if ready is None else ready[1]
        assert isinstance(batch.layout, Layout)
        slots = np.concatenate([np.arange(room.begin, room.begin + len(row)) for row, room in zip(rows, rooms)])
        source = _sources(packed) if packed.shared else None
        filling = Filling(
            batch.layout,
            self.cache,
            on_device(slots.astype(np.int64), self._device),
            None if source is None else on_device(source, self._device),
        )
        logits = self._logits(self._hidden(replace(batch, layout=filling), kept))
        return [_live(row, room) for row, room in zip(rows, rooms)], logits

    @torch.inference_mode()
    def extend(self, rows: Sequence[Live], ids: Sequence[Sequence[int]]) -> Tensor:
        """Let each row go on with one or more tokens of text.

        Args:
            rows: Rows of the cache.
            ids: What each goes on with.

        Returns:
            Logits of the token behind each row, float32, shape (rows, vocabulary).
        """
        hidden_RD = self._steps.run(_numbers(rows, ids)) if all(len(new) == 1 for new in ids) else None
        if hidden_RD is None:
            hidden_RD = self._hidden(self._going_on(rows, ids), None)
        for row, new in zip(rows, ids):
            row.ids.extend(new)
            row.place += len(new)
        return self._logits(hidden_RD)

    def _going_on(self, rows: Sequence[Live], ids: Sequence[Sequence[int]]) -> Batch:
        """The pass of :meth:`extend`."""
        counts = np.asarray([len(new) for new in ids])
        assert counts.min() > 0, "every row of a pass has a token in it"
        ends = np.cumsum(counts)
        ahead = np.arange(ends[-1]) - np.repeat(ends - counts, counts) + 1
        places = np.repeat([row.place for row in rows], counts) + ahead
        within = np.repeat([len(row) for row in rows], counts) + ahead - 1
        none = np.zeros(0, np.int64)
        layout = self._continuing(rows, counts.tolist(), [()] * len(rows))
        return Batch(
            ids=on_device(np.concatenate([np.asarray(new, np.int64) for new in ids]), self._device),
            positions=on_device(np.stack([within, places, places, places]), self._device)[:, None],
            layout=layout,
            tower=None,
            read=on_device(none, self._device),
            targets=on_device(none, self._device),
            weights=on_device(none, self._device),
        )

    @torch.inference_mode()
    def append(
        self, rows: Sequence[Live], encoded: Sequence[Encoded], more: Sequence[int], *, kept: Store | None = None
    ) -> Tensor | None:
        """Let each row go on as a longer conversation, pictures and all: what it has in common with it is not
        computed again, what it has beyond that is forgotten.

        Args:
            rows: Rows of the cache; one that has to grow may move.
            encoded: The whole conversation of each, from its first token on.
            more: Tokens that may follow each.
            kept: As for :meth:`join`.

        Returns:
            Logits of the token behind each row, float32, shape (rows, vocabulary); None, and nothing done, where the
            cache has no room.
        """
        sizes = [len(whole) + extra for whole, extra in zip(encoded, more, strict=True)]
        common = [common_tokens(row, whole) for row, whole in zip(rows, encoded, strict=True)]
        if not self._grow(rows, sizes, common):
            return None
        for row, at in zip(rows, common):
            del row.ids[at:]
        behind = [_behind(whole, at) for whole, at in zip(encoded, common)]
        packed = pack_prompts(behind, apart=True)
        layout = self._continuing(rows, [len(new) for new in behind], [()] * len(rows))
        batch = to_device(packed, self.model.spec, self._device, layout=layout)
        logits = self._logits(self._hidden(batch, kept))
        for row, whole in zip(rows, encoded):
            live = _live(whole, row.room)
            row.ids, row.place, row.media = live.ids, live.place, live.media
        return logits

    @torch.inference_mode()
    def fork(self, row: Live, length: int, size: int) -> Live | None:
        """Let another row begin as one does, which stays as it is.

        Args:
            row: A row of the cache.
            length: Tokens that they have in common, at least one; no picture goes on behind them.
            size: Tokens that the other may come to have.

        Returns:
            The other row, to go on with :meth:`append`; None, and nothing done, where the cache has no room.
        """
        rooms = self.cache.take([size])
        if rooms is None:
            return None
        self.cache.move(row.room, rooms[0], length)
        media = tuple(one for one in row.media if one[0] < length)
        return Live(rooms[0], row.ids[:length], row.place - (len(row) - length), media)

    def branch(
        self, rows: Sequence[Live], ids: Sequence[Sequence[int]], labels: Sequence[LabelTokens]
    ) -> tuple[Pack, Batch]:
        """The pass that scores every label behind every row; it is left to the caller to run it.

        Args:
            rows: Rows of the cache.
            ids: Text tokens that each goes on with before its labels, and keeps once the pass has run; where there
                are none, its last token passes the model once more.
            labels: The labels of each row.

        Returns:
            As :func:`~tuyi.encode.pack.pack` lays it, and on the device.
        """
        stems = []
        for row, new in zip(rows, ids, strict=True):
            stem = list(new)
            if not stem:
                stem = [row.ids.pop()]
                row.place -= 1
            stems.append(_text(stem, row.place + 1))
        packed = pack(stems, labels, apart=True)
        layout = self._continuing(rows, [len(stem) for stem in stems], [one.branch_lengths for one in labels])
        for row, one in zip(rows, stems):
            row.ids.extend(one.ids.tolist())
            row.place += len(one)
        return packed, to_device(packed, self.model.spec, self._device, layout=layout)

    def cut(self, row: Live, length: int) -> None:
        """Forget the last tokens of a row but for ``length`` of them; what goes must be text."""
        row.place -= len(row) - length
        del row.ids[length:]

    def leave(self, rows: Sequence[Live]) -> None:
        """Give the rows' rooms back."""
        self.cache.give_back([row.room for row in rows])

    def _continuing(
        self, rows: Sequence[Live], counts: Sequence[int], branches: Sequence[tuple[int, ...]]
    ) -> Continuing:
        seen = [
            Cached(row.room.begin, len(row) + count, count, lengths)
            for row, count, lengths in zip(rows, counts, branches)
        ]
        assert all(one.length <= row.room.size for one, row in zip(seen, rows)), "rooms are taken large enough"
        return Continuing.of(self.cache, seen, self._device)

    def _grow(self, rows: Sequence[Live], sizes: Sequence[int], common: Sequence[int]) -> bool:
        """Give rows rooms of at least these sizes, all or none of them."""
        small = [index for index, (row, size) in enumerate(zip(rows, sizes)) if row.room.size < size]
        rooms = self.cache.take([sizes[index] for index in small])
        if rooms is None:
            return False
        for index, room in zip(small, rooms):
            row = rows[index]
            self.cache.move(row.room, room, common[index])
            self.cache.give_back([row.room])
            row.room = room
        return True

    def _hidden(self, batch: Batch, kept: Store | None) -> Tensor:
        hidden_RD: Tensor = self.model.hf(batch=batch, head=False, kept=kept)
        return hidden_RD

    def _logits(self, hidden_RD: Tensor) -> Tensor:
        head = self.model.hf.lm_head
        return torch.cat([head(part).float() for part in hidden_RD.split(_ROWS_OF_LOGITS)])


def _live(row: Encoded, room: Room) -> Live:
    media = tuple((item.spans[0][0], item.key) for item in row.media)
    return Live(room, row.ids.tolist(), int(row.positions[:, -1].max()), media)


def _numbers(rows: Sequence[Live], ids: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """One token of each row, as :class:`Steps` takes it."""
    assert all(row.left for row in rows), "rooms are taken large enough"
    told = [
        (new[0], len(row), row.place + 1, row.room.begin + len(row), row.room.begin, len(row) + 1)
        for row, new in zip(rows, ids, strict=True)
    ]
    return np.asarray(told, np.int64).T


def _text(ids: Sequence[int], place: int) -> Encoded:
    """Tokens of text, the first of them at this position."""
    places = np.arange(place, place + len(ids), dtype=np.int32)
    return Encoded("", "", np.asarray(ids, np.int32), np.zeros(len(ids), bool), np.stack([places] * 3))


def _sources(packed: Pack) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The token of each cached one: the shared prefix and the row's own, row by row."""
    prefix, at, parts = np.arange(packed.shared), packed.shared, []
    for length in packed.lengths:
        parts += [prefix, np.arange(at, at + length)]
        at += length
    return np.concatenate(parts).astype(np.int64)


def common_tokens(row: Live, whole: Encoded) -> int:
    """Tokens at the start that row and conversation share, equal pictures included; never the conversation's last."""
    most = min(len(row), len(whole) - 1)
    differ = np.flatnonzero(np.asarray(row.ids[:most]) != whole.ids[:most])
    common = int(differ[0]) if len(differ) else most
    theirs = dict(row.media)
    for item in whole.media:
        begin, end = item.spans[0][0], item.spans[-1][1]
        if begin < common and (item.key is None or theirs.get(begin) != item.key or end > common):
            return begin
    return common


def _behind(whole: Encoded, begin: int) -> Encoded:
    """What a conversation has from a token on, its positions as they are in the whole."""
    media = tuple(
        Media(item.patches, tuple((first - begin, last - begin) for first, last in item.spans), item.key)
        for item in whole.media
        if item.spans[0][0] >= begin
    )
    return replace(
        whole,
        ids=whole.ids[begin:],
        supervised=whole.supervised[begin:],
        positions=whole.positions[:, begin:],
        media=media,
    )
