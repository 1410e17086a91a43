"""Keys and values of rows that are being answered, so that each token passes the model once.

One tensor holds them all. Every row has a room in it for its prompt and all that may follow, so nothing is moved or
copied while rows grow, and rows come and go without touching each other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tuyi.model.dense import branch_mask, causal_attention, sdpa
from tuyi.model.kernels import attend, varlen_available
from tuyi.model.key_sets import join
from tuyi.model.layout import Layout
from tuyi.model.segments import Segments

__all__ = ["Cached", "Continuing", "Filling", "KeyValueCache", "Room", "cache_bytes"]


def cache_bytes(config: Any, dtype: torch.dtype) -> int:
    """Memory that one cached token takes: a key and a value for each layer and key head.

    Args:
        config: transformers' configuration of the model.
        dtype: Of keys and values.
    """
    layers, heads, size = _shape(config)
    return layers * 2 * heads * size * dtype.itemsize


def _shape(config: Any) -> tuple[int, int, int]:
    """Layers, key heads, head size."""
    text = config.text_config
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return text.num_hidden_layers, text.num_key_value_heads, size


@dataclass(frozen=True, slots=True)
class Room:
    """A stretch of the cache: its first token and how many it holds."""

    begin: int
    size: int

    @property
    def end(self) -> int:
        return self.begin + self.size


class KeyValueCache:
    """Room for the keys and values of so many tokens, in every layer.

    Memory is taken with the first ones, whose type decides: a model may compute in another than its weights wait in.

    Args:
        config: transformers' configuration of the model.
        tokens: Tokens of all rows together.
    """

    def __init__(self, config: Any, tokens: int) -> None:
        self.tokens = tokens
        self._layers: int = _shape(config)[0]
        self._values: Tensor | None = None
        self._taken: list[Room] = []

    def take(self, sizes: Sequence[int]) -> list[Room] | None:
        """Rooms of these sizes, each where it first fits; None, and nothing taken, where not all of them fit."""
        taken = list(self._taken)
        rooms = self._first_fits(taken, sizes)
        if rooms is not None:
            self._taken = taken
        return rooms

    def fits(self, sizes: Sequence[int], without: Collection[Room] = ()) -> bool:
        """Whether rows of these sizes could be taken, were it not for some that are."""
        return self._first_fits([room for room in self._taken if room not in without], sizes) is not None

    def shrink(self, room: Room, size: int) -> Room:
        """Give the end of a room back; what is left of it."""
        smaller = Room(room.begin, size)
        self._taken[self._taken.index(room)] = smaller
        return smaller

    def _first_fits(self, taken: list[Room], sizes: Sequence[int]) -> list[Room] | None:
        rooms: list[Room] = []
        for size in sizes:
            at = begin = 0
            while at < len(taken) and taken[at].begin - begin < size:
                begin = taken[at].end
                at += 1
            if at == len(taken) and self.tokens - begin < size:
                return None
            rooms.append(Room(begin, size))
            taken.insert(at, rooms[-1])
        return rooms

    def give_back(self, rooms: Sequence[Room]) -> None:
        """These rooms are free again."""
        for room in rooms:
            self._taken.remove(room)

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer, (tokens, heads, size) each."""
        assert self._values is not None, "something was written"
        keys, values = self._values[index]
        return keys, values

    def write(self, index: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Put keys and values of a layer, (T, heads, size) each, into their slots."""
        if self._values is None:
            # and a token more, for what nobody keeps
            self._values = k.new_empty(self._layers, 2, self.tokens + 1, *k.shape[1:])
        for place, new in zip(self.layer(index), (k, v)):
            place.index_copy_(0, slots, new)

    def move(self, old: Room, new: Room, length: int) -> None:
        """Copy the first tokens of a room to another, both of which are taken and so apart."""
        assert self._values is not None, "the room has something in it"
        moved = self._values[:, :, old.begin : old.begin + length]
        self._values[:, :, new.begin : new.begin + length] = moved


@dataclass(eq=False, slots=True)
class Filling:
    """A pass over whole prompts that keeps their keys and values.

    Args:
        layout: How the prompts lie.
        cache: Where keys and values go.
        slots: (K,): the slot of each key.
        source: (K,): the token of each key where rows share a prefix, of which each gets its own copy; None where keys
            are the tokens themselves.
    """

    layout: Layout
    cache: KeyValueCache
    slots: Tensor
    source: Tensor | None

    def attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        """As :class:`~tuyi.model.layout.Attends` says."""
        found = (k, v) if self.source is None else (k.index_select(0, self.source), v.index_select(0, self.source))
        self.cache.write(module.layer_idx, self.slots, *found)
        return self.layout.attend(module, q, k, v, scale)

    def asking(self, x: Tensor) -> Tensor:
        """As :class:`~tuyi.model.layout.Attends` says."""
        return self.layout.asking(x)

    def leaving(self, x: Tensor) -> Tensor:
        """As :class:`~tuyi.model.layout.Attends` says."""
        return self.layout.leaving(x)

    def tensors(self) -> Iterator[Tensor]:
        """As :class:`~tuyi.model.layout.Attends` says."""
        yield from self.layout.tensors()
        yield self.slots
        if self.source is not None:
            yield self.source


@dataclass(frozen=True, slots=True)
class Cached:
    """What one row sees in a pass: ``length`` tokens from ``begin`` of the cache on, the last ``new`` of this pass.

    Args:
        branches: Tokens of each of its label branches.
    """

    begin: int
    length: int
    new: int
    branches: tuple[int, ...] = ()


@dataclass(eq=False, slots=True)
class Continuing:
    """A pass over a few new tokens of each row, which see all that the row has in the cache, and label branches.

    First lie the new tokens of all rows, then their branches. A branch sees its row and itself, and is not kept.

    Args:
        cache: With the rows.
        rows: Of the pass.
        slots: (S,): where the keys of the new tokens go.
        news: The new tokens of each row, seeing the row; ``cu_k`` holds where rows begin, ``used`` how long they are.
        used: int32, (rows,).
        prompts: The branch tokens of each row, seeing the row; for kernels; None without branches.
        leaves: Each branch, seeing itself; for kernels.
        read: (K,): the last new token of each row, and all branch tokens; None where that is every token.
    """

    cache: KeyValueCache
    rows: tuple[Cached, ...]
    slots: Tensor
    news: Segments
    used: Tensor
    prompts: Segments | None
    leaves: Segments | None
    read: Tensor | None

    @classmethod
    def of(cls, cache: KeyValueCache, rows: Sequence[Cached], device: torch.device) -> Continuing:
        """The layout of a pass, its small tensors on ``device``."""
        from tuyi.model.forward import on_device

        begins, used, new = torch.tensor([(row.begin, row.length, row.new) for row in rows], dtype=torch.int32).T
        ends = begins + used
        cu_q = F.pad(new.cumsum(0, dtype=torch.int32), (1, 0))
        # token i of all the new ones lies at the end of its row, less what of the row's new tokens comes after it
        slots = torch.arange(int(cu_q[-1])) + torch.repeat_interleave(ends - cu_q[1:], new)
        cu_k = on_device(F.pad(begins, (0, 1)), device)
        max_q, max_k = int(new.max()), int(used.max())
        news = Segments(on_device(cu_q, device), cu_k, max_q, max_k, max_q > 1)
        prompts = leaves = None
        lengths = [length for row in rows for length in row.branches if length]
        if lengths:
            of_rows = [sum(row.branches) for row in rows]
            row_cu, leaf_cu = (
                on_device(F.pad(torch.tensor(many, dtype=torch.int32).cumsum(0, dtype=torch.int32), (1, 0)), device)
                for many in (of_rows, lengths)
            )
            # 2 at least: fa2 takes segments of at most one query each to have exactly one
            prompts = Segments(row_cu, cu_k, max(2, *of_rows), max_k, False)
            leaves = Segments(leaf_cu, leaf_cu, max(lengths), max(lengths), True)
        read = None
        if max_q > 1:
            read = on_device(torch.cat([cu_q[1:].long() - 1, len(slots) + torch.arange(sum(lengths))]), device)
        placed = on_device(slots.long(), device)
        return cls(cache, tuple(rows), placed, news, on_device(used.contiguous(), device), prompts, leaves, read)

    def attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        """As :class:`~tuyi.model.layout.Attends` says."""
        new = len(self.slots)
        self.cache.write(module.layer_idx, self.slots, k[:new], v[:new])
        keys, values = self.cache.layer(module.layer_idx)
        if not varlen_available(q.device, q.dtype):
            return self._dense(q, (keys, values), (k[new:], v[new:]), scale)
        out, _ = _in_rooms(q[:new], keys, values, self.news, self.used, scale)
        if self.prompts is None or self.leaves is None:
            return out
        leaf = (q[new:], k[new:], v[new:])
        prompt, prompt_lse = _in_rooms(leaf[0], keys, values, self.prompts, self.used, scale)
        own, own_lse = attend(*leaf, self.leaves, scale)
        return torch.cat([out, join(own, own_lse, prompt, prompt_lse)])

    def asking(self, x: Tensor) -> Tensor:
        """As :class:`~tuyi.model.layout.Attends` says: all of them."""
        return x

    def leaving(self, x: Tensor) -> Tensor:
        """As :class:`~tuyi.model.layout.Attends` says."""
        return x if self.read is None else x.index_select(1, self.read)

    def tensors(self) -> Iterator[Tensor]:
        """As :class:`~tuyi.model.layout.Attends` says."""
        yield from (self.slots, self.used)
        if self.read is not None:
            yield self.read
        for segments in (self.news, self.prompts, self.leaves):
            if segments is not None:
                yield from (segments.cu_q, segments.cu_k)

    def _dense(
        self, q: Tensor, cached: tuple[Tensor, Tensor], leaf: tuple[Tensor, Tensor], scale: float | None
    ) -> Tensor:
        """The same with dense attention, row by row."""
        outs, leaf_outs, at, leaf_at = [], [], 0, len(self.slots)
        for row in self.rows:
            seen = slice(row.begin, row.begin + row.length)
            keys, values = (x[seen] for x in cached)
            outs.append(causal_attention(*_of_one_row(q[at : at + row.new], keys, values), scale))
            at += row.new
            count = sum(row.branches)
            if count:
                own = slice(leaf_at - len(self.slots), leaf_at - len(self.slots) + count)
                keys, values = (torch.cat([x, y[own]]) for x, y in zip((keys, values), leaf))
                mask = branch_mask(row.length, row.branches, q)
                one = _of_one_row(q[leaf_at : leaf_at + count], keys, values)
                leaf_outs.append(sdpa(*one, attn_mask=mask, scale=scale))
                leaf_at += count
        return torch.cat([*outs, *leaf_outs], dim=2)[0].transpose(0, 1)


def _of_one_row(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of one row, (N, H, D) each, as torch's attention takes them: (1, H, N, D)."""
    q, k, v = (part.transpose(0, 1)[None] for part in (q, k, v))
    return q, k, v


def _in_rooms(
    q: Tensor, keys: Tensor, values: Tensor, at: Segments, used: Tensor, scale: float | None
) -> tuple[Tensor, Tensor]:
    """Attention of each query segment to the first ``used`` keys of its room, and its log-sum-exp.

    This is torch's fa2 below :func:`torch.nn.attention.varlen.varlen_attn`, which in torch 2.11 does not pass on
    ``seqused_k``; with it, ``cu_k`` only says where rooms begin, and nothing has to be gathered. The queries are few,
    so that the kernels which are faster for whole prompts gain nothing here.
    """
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        q, keys, values, at.cu_q, at.cu_k, at.max_q, at.max_k, 0.0, at.causal, False,
        scale=scale, window_size_left=-1, window_size_right=0 if at.causal else -1, seqused_k=used,
    )  # fmt: skip
    return out, lse
