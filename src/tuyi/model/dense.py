"""Attention over packs by torch's own dense call: on CPUs, and for types that the kernels do not take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from tuyi.model.layout import Layout

__all__ = ["branch_mask", "causal_attention", "dense_layout", "dense_segments", "sdpa"]


def dense_layout(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float | None) -> Tensor:
    """The attention of a pack, part by part.

    Args:
        q: (T, H, D), or (Q, H, D) of the tokens that ask in the last layer; k and v: (T, H or fewer, D).
        layout: How its tokens lie.
        scale: Factor on the scores; the usual one where None.

    Returns:
        As q.
    """
    shared, roots = layout.shared, layout.roots
    if len(q) != len(k):
        assert layout.ends is not None
        return _dense_ends(q, k, v, layout, layout.ends.tails, scale)
    outs = []
    if shared:
        outs.append(dense_segments(q[:shared], k[:shared], v[:shared], [shared], True, scale))
    before = (k[:shared], v[:shared]) if shared else None
    own = slice(shared, roots)
    outs.append(dense_segments(q[own], k[own], v[own], layout.lengths, True, scale, before))
    if layout.branches is not None and any(layout.branches.row_lengths):
        outs.append(_dense_ends(q[roots:], k, v, layout, [0] * len(layout.lengths), scale))
    return outs[0] if len(outs) == 1 else torch.cat(outs)


def dense_segments(
    q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], causal: bool, scale: float | None,
    before: tuple[Tensor, Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """Attention inside each segment, neighbouring segments computed together.

    Segments of equal length stack as they are. Causal ones of nearly equal length are filled up at their end, where
    nothing that counts can see the filling.

    Args:
        q: (T, H, D); k and v: (T, H or fewer, D).
        lengths: Of the segments, T in all.
        causal: Whether queries see only what is before them.
        scale: Factor on the scores; the usual one where None.
        before: Keys and values that every segment sees in full before its own.

    Returns:
        (T, H, D).
    """
    outs, at = [], 0
    for run in _runs(lengths, causal):
        begin, at = at, at + sum(run)
        parts = [x[begin:at] for x in (q, k, v)]
        index = None if min(run) == max(run) else _fill(run, q.device)
        if index is not None:
            parts = [x.index_select(0, index) for x in parts]
        queries, *seen = (x.reshape(len(run), max(run), *x.shape[1:]).transpose(1, 2) for x in parts)
        if before is not None:
            first = (x.transpose(0, 1).expand(len(run), -1, -1, -1) for x in before)
            seen = [torch.cat([x, y], dim=2) for x, y in zip(first, seen)]
        keys, values = seen
        out = causal_attention(queries, keys, values, scale) if causal else sdpa(queries, keys, values, scale=scale)
        out = out.transpose(1, 2).flatten(0, 1)
        outs.append(out if index is None else out.index_select(0, _unfill(run, q.device)))
    return outs[0] if len(outs) == 1 else torch.cat(outs)


_CHUNK = 128


def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    """Queries (R, H, N, D) that see all keys (R, H or fewer, M, D) up to their own, which are the last N.

    Chunk by chunk of queries: torch's attention on a CPU also computes what a mask, or causality within 512 keys, takes
    away. With gradients, which would be added up chunk by chunk, that gains nothing.
    """
    count, before = q.shape[2], k.shape[2] - q.shape[2]
    if count == 1:
        return sdpa(q, k, v, scale=scale)
    if q.requires_grad and not before:
        return sdpa(q, k, v, is_causal=True, scale=scale)
    outs = []
    for begin in range(0, count, _CHUNK):
        end = min(begin + _CHUNK, count)
        seen = slice(0, before + end)
        mask = q.new_full((end - begin, before + end), -torch.inf).triu(before + begin + 1)
        outs.append(sdpa(q[:, :, begin:end], k[:, :, seen], v[:, :, seen], attn_mask=mask, scale=scale))
    return outs[0] if len(outs) == 1 else torch.cat(outs, dim=2)


_WASTE = 1.5  # how much more a filled-up run may compute than its segments alone


def _runs(lengths: Sequence[int], causal: bool) -> Iterator[list[int]]:
    """Neighbouring segments to compute together."""
    run: list[int] = []
    for length in lengths:
        grown = [*run, length]
        if run and (
            length != run[0] if not causal else len(grown) * max(grown) ** 2 > _WASTE * sum(n * n for n in grown)
        ):
            yield run
            grown = [length]
        run = grown
    if run:
        yield run


def _fill(run: Sequence[int], device: torch.device) -> Tensor:
    """For each place of the filled-up segments the token that stands there; the first one in the filling."""
    lengths = torch.tensor(run)
    place = torch.arange(max(run))
    token = (lengths.cumsum(0) - lengths)[:, None] + place
    return torch.where(place < lengths[:, None], token, 0).flatten().to(device)


def _unfill(run: Sequence[int], device: torch.device) -> Tensor:
    """For each token its place in the filled-up segments."""
    lengths = torch.tensor(run)
    return torch.arange(len(run) * max(run)).view(len(run), -1)[torch.arange(max(run)) < lengths[:, None]].to(device)


def _dense_ends(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, tails: Sequence[int], scale: float | None
) -> Tensor:  # fmt: skip
    """Attention of the last tokens of each row, then of all branch tokens: each sees its prompt and its own branch."""
    outs, leaf_outs, at, root, leaf, leaf_k = [], [], 0, layout.shared, sum(tails), layout.roots
    branches = layout.branches.lengths if layout.branches is not None else ((),) * len(tails)
    for length, lengths, tail in zip(layout.lengths, branches, tails, strict=True):
        count = sum(lengths)
        own = slice(leaf_k, leaf_k + count)
        keys, values = (torch.cat([x[: layout.shared], x[root : root + length], x[own]]) for x in (k, v))
        queries = torch.cat([q[at : at + tail], q[leaf : leaf + count]])
        of = (layout.shared + length, lengths, tail)
        if of not in layout.masks:
            layout.masks[of] = branch_mask(layout.shared + length, lengths, q, tail)
        heads = [x.transpose(0, 1)[None] for x in (queries, keys, values)]
        out = sdpa(*heads, attn_mask=layout.masks[of], scale=scale)[0].transpose(0, 1)
        outs.append(out[:tail])
        leaf_outs.append(out[tail:])
        at, root, leaf, leaf_k = at + tail, root + length, leaf + count, leaf_k + count
    return torch.cat([*outs, *leaf_outs])


def branch_mask(prompt: int, lengths: Sequence[int], like: Tensor, tail: int = 0) -> Tensor:
    """What is added to scores, (tail + B, prompt + B): 0 for what is seen, else -inf.

    The last tokens of the prompt see it up to themselves; a branch's see the whole prompt and their own branch up to
    themselves. torch would turn a mask of truth values into this one in every layer anew.

    Args:
        prompt: Tokens that every branch sees.
        lengths: Of the branches, B in all.
        like: Says type and device.
        tail: How many of the prompt's last tokens ask.
    """
    total = sum(lengths)
    branch = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths, dtype=torch.int64))
    mask = torch.zeros(tail + total, prompt + total, dtype=like.dtype)
    mask[:tail] = torch.full_like(mask[:tail], -torch.inf).triu(prompt - tail + 1)
    mask[tail:, prompt:].masked_fill_(~(branch[:, None] == branch[None, :]).tril(), -torch.inf)
    return mask.to(like.device)


def sdpa(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """torch's attention, (R, H, N, D) in and out, with fewer heads of keys and values where they are shared."""
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1], **options)
