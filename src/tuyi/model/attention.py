"""Attention over packs: rows that must not see each other, and label branches behind their prompts.

One function is registered with transformers for both towers. Its name contains ``flash`` because transformers hands
``cu_seq_lens_q`` to the vision tower, instead of looping over pictures, only then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
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
        prompts: Tokens of each row's prompt.
        branches: The branches of each row.
        row_cu: int32, shape (R + 1,): cumulative branch tokens of the rows.
        cu: int32: cumulative lengths of all branches.
    """

    prompts: tuple[int, ...]
    branches: Branches
    row_cu: Tensor
    cu: Tensor

    @cached_property
    def longest_row(self) -> int:
        return max(self.branches.row_lengths)

    @cached_property
    def longest(self) -> int:
        return max(length for row in self.branches.lengths for length in row)

    @cached_property
    def masks(self) -> tuple[Tensor, ...]:
        """For each row a bool (branch tokens, prompt + branch tokens): what a token may see; for dense attention."""
        device = self.cu.device
        return tuple(_branch_mask(*row, device) for row in zip(self.prompts, self.branches.lengths))


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
            row_cu, cu = _cumulative(branches.row_lengths, device), _cumulative(flat, device)
            laid = BranchLayout(tuple(lengths), branches, row_cu, cu)
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
        q, k, v = (x[:roots] for x in (q_THD, k_THD, v_THD))
        trunk = _segments(q, k, v, layout.lengths, layout.cu, layout.longest, True, scaling)
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
        most = int(longest or 0)
        out: Tensor = varlen_attention(q, k, v, cu, cu, most, most, causal=causal, scale=scaling)
        return out
    assert lengths is not None
    return _dense_segments(q, k, v, lengths, causal, scaling)


def _dense_segments(
    q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], causal: bool, scaling: float | None
) -> Tensor:
    """The same with dense attention, neighbouring segments computed together.

    Segments of equal length stack as they are. Causal ones of nearly equal length are filled up at their end, where
    nothing that counts can see the filling.
    """
    outs, at = [], 0
    for run in _runs(lengths, causal):
        begin, at = at, at + sum(run)
        parts = [x[begin:at] for x in (q, k, v)]
        index = None if min(run) == max(run) else _fill(run, q.device)
        if index is not None:
            parts = [x.index_select(0, index) for x in parts]
        heads = [x.reshape(len(run), max(run), *x.shape[1:]).transpose(1, 2) for x in parts]
        out = _sdpa(*heads, is_causal=causal, scale=scaling).transpose(1, 2).flatten(0, 1)
        outs.append(out if index is None else out.index_select(0, _unfill(run, q.device)))
    return outs[0] if len(outs) == 1 else torch.cat(outs)


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
        merged: Tensor = prompt + share * (own.float() - prompt.float())
        return merged.to(q.dtype)
    outs, root, leaf = [], 0, 0
    for length, count, mask in zip(layout.lengths, branches.branches.row_lengths, branches.masks):
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
