"""Attention over packs: rows that must not see each other, a prefix that they share, label branches behind them.

One function is registered with transformers for both towers. Its name contains ``flash`` because transformers hands
``cu_seq_lens_q`` to the vision tower, instead of looping over pictures, only then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from tuyi.encode.pack import Branches
from tuyi.model.kernels import Kernel, attend, fastest, varlen_available
from tuyi.model.key_sets import join, lse_with_gradient
from tuyi.model.segments import Segments

__all__ = ["NAME", "Attends", "Layout", "branch_mask", "choose_kernels", "register", "use_packed_attention"]

NAME = "tuyi_flash"


class Attends(Protocol):
    """How the language model's tokens of one pass see each other, and what else they see."""

    def attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        """One layer's attention: q (T, H, D), k and v (T, H or fewer, D), with rotary positions → (T, H, D)."""
        ...

    def tensors(self) -> Iterator[Tensor]:
        """All that lies on the device."""
        ...


@dataclass(eq=False, slots=True)
class Layout:
    """How the tokens of a pack lie: the shared prefix, each row's own tokens, then all label branches.

    Not frozen: a compiled block would look into a frozen one and be compiled anew for each number of rows.

    Args:
        shared: Tokens of the prefix that all rows see; 0 for none.
        lengths: Tokens of each row's own part.
        branches: The branches of each row.
        segments: Prefix, rows and branches, each seeing its own keys; for kernels.
        keys: (K,): for kernels, the token of each key where rows share a prefix (it stands before each row); None
            where keys are the tokens themselves.
        prompts: Each row's branch tokens, seeing the row's whole prompt; for kernels; None without branches.
        prompt_keys: The keys of all prompts, which these segments count from; kernels leave the gradients of keys that
            no segment has as they find them.
        masks: Cache of the dense form.
    """

    shared: int
    lengths: tuple[int, ...]
    branches: Branches | None
    segments: Segments
    keys: Tensor | None
    prompts: Segments | None
    prompt_keys: slice
    masks: dict[tuple[Any, ...], Tensor]

    @classmethod
    def of(
        cls, lengths: Sequence[int], device: torch.device, branches: Branches | None = None, shared: int = 0
    ) -> Layout:
        """The layout of rows of the given lengths, its small tensors on ``device``."""
        first = [shared] if shared else []
        leaves = [length for row in branches.lengths for length in row if length] if branches else []
        queries = [*first, *lengths, *leaves]
        seen = [*first, *(shared + length for length in lengths), *leaves]
        cu_q, cu_k = _cumulative(queries), _cumulative(seen)
        segments = Segments(cu_q.to(device), cu_k.to(device), max(queries), max(seen), True)
        keys = _keys(shared, lengths, sum(leaves)).to(device) if shared else None
        rows = cu_k[len(first) : len(first) + len(lengths) + 1]
        prompts = None
        if branches is not None:
            row_cu, own_cu = _cumulative(branches.row_lengths).to(device), (rows - rows[0]).to(device)
            prompts = Segments(row_cu, own_cu, max(branches.row_lengths), shared + max(lengths), False)
        prompt_keys = slice(int(rows[0]), int(rows[-1]))
        return cls(shared, tuple(lengths), branches, segments, keys, prompts, prompt_keys, {})

    @property
    def roots(self) -> int:
        """Tokens before the branches."""
        return self.shared + sum(self.lengths)

    def attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        """As :class:`Attends` says."""
        if not varlen_available(q.device, q.dtype):
            return _dense(q, k, v, self, scale)
        return _packed(q, k, v, self, scale, getattr(module, "tuyi_kernel", None))

    def tensors(self) -> Iterator[Tensor]:
        """As :class:`Attends` says."""
        for segments in (self.segments, self.prompts):
            if segments is not None:
                yield from (segments.cu_q, segments.cu_k)
        if self.keys is not None:
            yield self.keys

    def leaves(self) -> Segments:
        """Each label branch by itself, counted from the first of their tokens."""
        assert self.branches is not None
        lengths = [length for row in self.branches.lengths for length in row if length]
        cu = self.segments.cu_q[-len(lengths) - 1 :] - self.roots
        return Segments(cu, cu, max(lengths), max(lengths), True)


def _cumulative(lengths: Sequence[int]) -> Tensor:
    return F.pad(torch.tensor(lengths, dtype=torch.int32).cumsum(0, dtype=torch.int32), (1, 0))


def _keys(shared: int, lengths: Sequence[int], leaves: int) -> Tensor:
    """The token of each key: prefix; prefix and row, for each row; branches."""
    prefix = torch.arange(shared)
    parts, at = [prefix], shared
    for length in lengths:
        parts.extend((prefix, torch.arange(at, at + length)))
        at += length
    return torch.cat([*parts, torch.arange(at, at + leaves)])


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    layout: Attends | None = None,
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
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    if layout is not None:
        return layout.attend(module, q, k, v, scaling)[None], None
    assert cu_seq_lens_q is not None
    if not varlen_available(q.device, q.dtype):
        return _dense_segments(q, k, v, cu_seq_lens_q.diff().tolist(), bool(module.is_causal), scaling)[None], None
    assert max_length_q is not None
    kernel: Kernel | None = getattr(module, "tuyi_kernel", None)
    at = Segments(cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, bool(module.is_causal))
    return attend(q, k, v, at, scaling, kernel)[0][None], None


def _packed(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float | None, kernel: Kernel | None) -> Tensor:
    """The language model's attention with kernels: one call for all segments, one more for branches and prompts."""
    if layout.keys is not None:
        k, v = k.index_select(0, layout.keys), v.index_select(0, layout.keys)
    out, lse = attend(q, k, v, layout.segments, scale, kernel)
    if layout.prompts is not None and layout.prompts.max_q:
        roots, leaf_q, leaf_k = layout.roots, q[layout.roots :], k[layout.roots - len(q) :]
        prompt_k, prompt_v = k[layout.prompt_keys], v[layout.prompt_keys]
        prompt, prompt_lse = attend(leaf_q, prompt_k, prompt_v, layout.prompts, scale, kernel)
        own, own_lse = out[roots:], lse[:, roots:]
        if out.requires_grad:
            prompt_lse = lse_with_gradient(prompt_lse, leaf_q, prompt_k, layout.prompts, scale, kernel)
            own_lse = lse_with_gradient(own_lse, leaf_q, leaf_k, layout.leaves(), scale, kernel)
            return torch.cat([out[:roots], join(own, own_lse, prompt, prompt_lse)])
        out[roots:] = join(own, own_lse, prompt, prompt_lse)
    return out


def _dense(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float | None) -> Tensor:
    """The same with dense attention, part by part."""
    shared, roots = layout.shared, layout.roots
    outs = []
    if shared:
        outs.append(_dense_segments(q[:shared], k[:shared], v[:shared], [shared], True, scale))
    before = (k[:shared], v[:shared]) if shared else None
    own = slice(shared, roots)
    outs.append(_dense_segments(q[own], k[own], v[own], layout.lengths, True, scale, before))
    if layout.branches is not None and any(layout.branches.row_lengths):
        outs.append(_dense_branches(q, k, v, layout, layout.branches, scale))
    return outs[0] if len(outs) == 1 else torch.cat(outs)


def _dense_segments(
    q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], causal: bool, scale: float | None,
    before: tuple[Tensor, Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """Attention inside each segment, neighbouring segments computed together; (T, H, D) in and out.

    Segments of equal length stack as they are. Causal ones of nearly equal length are filled up at their end, where
    nothing that counts can see the filling. ``before`` holds keys and values that every segment sees in full.
    """
    outs, at = [], 0
    for run in _runs(lengths, causal):
        begin, at = at, at + sum(run)
        parts = [x[begin:at] for x in (q, k, v)]
        index = None if min(run) == max(run) else _fill(run, q.device)
        if index is not None:
            parts = [x.index_select(0, index) for x in parts]
        heads = [x.reshape(len(run), max(run), *x.shape[1:]).transpose(1, 2) for x in parts]
        if before is None:
            out = _sdpa(*heads, is_causal=causal, scale=scale)
        else:
            first = [x.transpose(0, 1).expand(len(run), -1, -1, -1) for x in before]
            keys, values = (torch.cat([x, y], dim=2) for x, y in zip(first, heads[1:]))
            mask = torch.ones(max(run), keys.shape[2], dtype=torch.bool, device=q.device).tril(len(before[0]))
            out = _sdpa(heads[0], keys, values, attn_mask=mask, scale=scale)
        out = out.transpose(1, 2).flatten(0, 1)
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


def _dense_branches(q: Tensor, k: Tensor, v: Tensor, layout: Layout, branches: Branches, scale: float | None) -> Tensor:
    """Each branch token attends to its prompt and to its own branch so far; (B, H, D)."""
    outs, root, leaf = [], layout.shared, layout.roots
    for length, lengths, count in zip(layout.lengths, branches.lengths, branches.row_lengths):
        own = slice(leaf, leaf + count)
        keys, values = (torch.cat([x[: layout.shared], x[root : root + length], x[own]]) for x in (k, v))
        at = (layout.shared + length, lengths)
        if at not in layout.masks:
            layout.masks[at] = branch_mask(*at, q.device)
        heads = [x.transpose(0, 1)[None] for x in (q[own], keys, values)]
        outs.append(_sdpa(*heads, attn_mask=layout.masks[at], scale=scale)[0].transpose(0, 1))
        root, leaf = root + length, leaf + count
    return torch.cat(outs)


def branch_mask(prompt: int, lengths: Sequence[int], device: torch.device) -> Tensor:
    """bool (B, prompt + B): the whole prompt, and one's own branch up to oneself."""
    total = sum(lengths)
    branch = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    own = (branch[:, None] == branch[None, :]).tril()
    return torch.cat([torch.ones(total, prompt, dtype=torch.bool), own], dim=1).to(device)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1], **options)


def register(*, compiled: bool = False) -> None:
    """Make the attention known to transformers; safe to call twice.

    Args:
        compiled: Whether the blocks around it will be compiled.
    """
    from transformers import AttentionInterface

    # a compiled block stops here and goes on behind it: what the segments are changes from pack to pack.
    # No mask is registered with it: transformers would look at the positions for one, and the host wait for the GPU
    AttentionInterface.register(NAME, torch.compiler.disable(packed_attention) if compiled else packed_attention)


def use_packed_attention(model: torch.nn.Module) -> None:
    """Let both towers of a model attend by packs."""
    register()
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "_attn_implementation"):
            config._attn_implementation_internal = NAME


def choose_kernels(
    model: torch.nn.Module, *, gradient: bool = False, device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, str]:  # fmt: skip
    """Give each tower of a model, or of a part of one, the fastest attention kernel of this machine.

    Args:
        model: The model or a part of it, on its device.
        gradient: Whether it learns through its attention, which not all kernels allow.
        device, dtype: Where and in which type it computes; those of its weights where not given.

    Returns:
        For ``tower`` and ``language`` what was chosen and why; empty where dense attention is used.
    """
    chosen: dict[str, str] = {}
    module: Any
    for module in model.modules():
        if not (hasattr(module, "is_causal") and hasattr(module, "head_dim")):
            continue
        weight = next(module.parameters())
        place = device or weight.device
        if not varlen_available(place, dtype or _type(weight)):
            continue
        heads, kv_heads = _heads(module)
        pick = fastest(place, heads, kv_heads, module.head_dim, bool(module.is_causal), gradient)
        module.tuyi_kernel = pick.kernel
        chosen["language" if module.is_causal else "tower"] = str(pick)
    return chosen


def _type(weight: Tensor) -> torch.dtype:
    """What a layer computes in; one in 4 bits, in 16."""
    return weight.dtype if weight.is_floating_point() else torch.bfloat16


def _heads(module: Any) -> tuple[int, int]:
    """Query and key heads of an attention layer of either tower."""
    if hasattr(module, "num_heads") and not hasattr(module, "q_proj"):
        return module.num_heads, module.num_heads
    return module.q_proj.out_features // module.head_dim, module.k_proj.out_features // module.head_dim
