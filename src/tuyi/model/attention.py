"""Attention over packs: rows that must not see each other, and label branches behind their prompts.

One function is registered with transformers for both towers. Its name contains ``flash`` because transformers hands
``cu_seq_lens_q`` to the vision tower, instead of looping over pictures, only then.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tuyi.encode.pack import Branches
from tuyi.model.kernels import varlen_attention, varlen_available

__all__ = ["NAME", "BranchLayout", "Layout", "register", "use_packed_attention"]

NAME = "tuyi_flash"


@dataclass(frozen=True, eq=False)
class BranchLayout:
    """Where label branches lie behind the prompts.

    Args:
        row_lengths: Branch tokens of each row.
        row_cu: int32, shape (R + 1,): their cumulative sum.
        cu: int32: cumulative lengths of all branches.
        longest_row, longest: The longest of either.
        masks: For each row a bool (branch tokens, prompt + branch tokens): what a token may see; for dense kernels.
    """

    row_lengths: tuple[int, ...]
    row_cu: Tensor
    cu: Tensor
    longest_row: int
    longest: int
    masks: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Layout:
    """How the tokens of a pack lie.

    Args:
        lengths: Tokens of each row's prompt.
        cu: int32, shape (R + 1,): their cumulative sum.
        longest: The longest.
        branches: Label branches behind the prompts.
    """

    lengths: tuple[int, ...]
    cu: Tensor
    longest: int
    branches: BranchLayout | None = None

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device, branches: Branches | None = None) -> Layout:
        """The layout of rows of the given lengths, its small tensors on ``device``."""
        laid = None
        if branches is not None:
            flat = [length for row in branches.lengths for length in row]
            dense = not varlen_available(device)
            laid = BranchLayout(
                row_lengths=branches.row_lengths,
                row_cu=_cumulative(branches.row_lengths, device),
                cu=_cumulative(flat, device),
                longest_row=max(branches.row_lengths),
                longest=max(flat),
                masks=tuple(_branch_mask(n, row, device) for n, row in zip(lengths, branches.lengths)) if dense else (),
            )
        return cls(tuple(lengths), _cumulative(lengths, device), max(lengths), laid)


def _cumulative(lengths: Sequence[int], device: torch.device) -> Tensor:
    return F.pad(torch.tensor(lengths, dtype=torch.int32).cumsum(0, dtype=torch.int32), (1, 0)).to(device)


def _branch_mask(prompt: int, lengths: Sequence[int], device: torch.device) -> Tensor:
    """bool (B, prompt + B): the whole prompt, and one's own branch up to oneself."""
    total = sum(lengths)
    branch = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    own = (branch[:, None] == branch[None, :]).tril()
    return torch.cat([torch.ones(total, prompt, dtype=torch.bool), own], dim=1).to(device)


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    layout: Layout | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention in transformers' interface.

    Args:
        module: The attention layer; says whether it is causal.
        query: (1, H, T, D); key and value with fewer heads where the layer groups them.
        layout: The language model's layout.
        cu_seq_lens_q: The vision tower's segments, where there is no layout.
        max_length_q: The longest of them.

    Returns:
        (1, T, H, D), and no weights.
    """
    assert query.shape[0] == 1, "packs have a batch of one"
    q_THD, k_THD, v_THD = (x[0].transpose(0, 1) for x in (query, key, value))
    causal = bool(module.is_causal)
    if layout is None:
        assert cu_seq_lens_q is not None
        lengths = None if varlen_available(query.device, query.dtype) else cu_seq_lens_q.diff().tolist()
        out = _segments(q_THD, k_THD, v_THD, lengths, cu_seq_lens_q, max_length_q, causal, scaling)
    elif layout.branches is None:
        out = _segments(q_THD, k_THD, v_THD, layout.lengths, layout.cu, layout.longest, causal, scaling)
    else:
        roots = sum(layout.lengths)
        front = [x[:roots] for x in (q_THD, k_THD, v_THD)]
        trunk = _segments(*front, layout.lengths, layout.cu, layout.longest, True, scaling)
        leaves = _branch_attention(q_THD, k_THD, v_THD, layout, layout.branches, scaling)
        out = torch.cat([trunk, leaves])
    return out[None], None


def _segments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Sequence[int] | None,
    cu: Tensor,
    longest: int | None,
    causal: bool,
    scaling: float | None,
) -> Tensor:
    """Attention inside each segment; (T, H, D) in and out."""
    if varlen_available(q.device, q.dtype):
        return varlen_attention(q, k, v, cu, cu, int(longest or 0), int(longest or 0), causal=causal, scale=scaling)
    assert lengths is not None
    return _dense_segments(q, k, v, lengths, causal, scaling)


def _dense_segments(
    q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], causal: bool, scaling: float | None
) -> Tensor:
    """The same with dense attention, segments of equal length computed together."""
    starts: dict[int, list[int]] = defaultdict(list)
    at = 0
    for length in lengths:
        starts[length].append(at)
        at += length
    if len(starts) == 1:
        n, length = len(lengths), lengths[0]
        split = [x.unflatten(0, (n, length)).transpose(1, 2) for x in (q, k, v)]
        return _sdpa(*split, is_causal=causal, scale=scaling).transpose(1, 2).flatten(0, 1)
    order, outs = [], []
    for length, begins in starts.items():
        index = (torch.tensor(begins, device=q.device)[:, None] + torch.arange(length, device=q.device)).flatten()
        split = [x[index].unflatten(0, (len(begins), length)).transpose(1, 2) for x in (q, k, v)]
        outs.append(_sdpa(*split, is_causal=causal, scale=scaling).transpose(1, 2).flatten(0, 1))
        order.append(index)
    return torch.cat(outs)[torch.cat(order).argsort()]


def _branch_attention(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, branches: BranchLayout, scaling: float | None
) -> Tensor:
    """Each branch token attends to its prompt and to its own branch so far; (B, H, D)."""
    roots = sum(layout.lengths)
    q_B, k_B, v_B = q[roots:], k[roots:], v[roots:]
    if varlen_available(q.device, q.dtype):
        prompt, prompt_lse = varlen_attention(
            q_B, k[:roots], v[:roots], branches.row_cu, layout.cu, branches.longest_row, layout.longest,
            causal=False, scale=scaling, lse=True,
        )  # fmt: skip
        own, own_lse = varlen_attention(
            q_B, k_B, v_B, branches.cu, branches.cu, branches.longest, branches.longest,
            causal=True, scale=scaling, lse=True,
        )  # fmt: skip
        share = torch.sigmoid(own_lse - prompt_lse).unsqueeze(-1)  # softmax over both key sets, from their normalisers
        return (prompt + share * (own.float() - prompt.float())).to(q.dtype)
    outs, root, leaf = [], 0, 0
    for length, count, mask in zip(layout.lengths, branches.row_lengths, branches.masks):
        keys, values = (torch.cat([x[root : root + length], y[leaf : leaf + count]]) for x, y in ((k, k_B), (v, v_B)))
        heads = [x.transpose(0, 1)[None] for x in (q_B[leaf : leaf + count], keys, values)]
        outs.append(_sdpa(*heads, attn_mask=mask, scale=scaling)[0].transpose(0, 1))
        root, leaf = root + length, leaf + count
    return torch.cat(outs)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1], **options)


def register() -> None:
    """Make the attention known to transformers; safe to call twice."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)


def use_packed_attention(model: torch.nn.Module) -> None:
    """Let both towers of a model attend by packs."""
    register()
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "_attn_implementation"):
            config._attn_implementation_internal = NAME
