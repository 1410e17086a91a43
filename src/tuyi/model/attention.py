"""Attention over packs: rows that must not see each other, a prefix that they share, label branches behind them.

One function is registered with transformers for both towers. Its name contains ``flash`` because transformers hands
``cu_seq_lens_q`` to the vision tower, instead of looping over pictures, only then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tuyi.encode.pack import Branches
from tuyi.model.dense import dense_layout, dense_segments
from tuyi.model.kernels import Kernel, attend, fastest, varlen_available
from tuyi.model.key_sets import join, lse_with_gradient
from tuyi.model.segments import Segments

__all__ = ["NAME", "Attends", "Layout", "choose_kernels", "register", "use_packed_attention"]

NAME = "tuyi_flash"


class Attends(Protocol):
    """How the language model's tokens of one pass see each other, and what else they see."""

    def attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        """One layer's attention: q (T, H, D), k and v (T, H or fewer, D), with rotary positions → (T, H, D)."""
        ...

    def asking(self, x: Tensor) -> Tensor:
        """Of (1, T, …) the tokens that ask in the last layer, whose keys and values are still those of all tokens."""
        ...

    def leaving(self, x: Tensor) -> Tensor:
        """Of these, (1, Q, …), the ones whose hidden states leave the model, (1, K, …)."""
        ...

    def tensors(self) -> Iterator[Tensor]:
        """All that lies on the device."""
        ...


@dataclass(eq=False, slots=True)
class Ends:
    """The tokens that ask in the last layer: the last ones of each row, and all branches.

    Args:
        tails: Tokens at the end of each row, from the first whose hidden state is read.
        segments: Tails and branches, each seeing its own keys, those of the prefix's own segment left out; for kernels.
        at: (Q,): the same as numbers of tokens.
        read: (K,): which of them are read.
    """

    tails: tuple[int, ...]
    segments: Segments
    at: Tensor
    read: Tensor

    @classmethod
    def of(
        cls, lengths: Sequence[int], shared: int, leaves: Sequence[int], keep: NDArray[np.int64], device: torch.device
    ) -> Ends:
        """Of rows of these lengths behind a shared prefix, with branches of these behind them.

        Args:
            lengths, shared, leaves: Tokens of each row's own part, of the prefix, of each branch.
            keep: (K,): the tokens whose hidden states are read, ascending.
            device: Where to.
        """
        ends = shared + np.cumsum(lengths)
        first = np.append(keep, ends[-1])[np.searchsorted(keep, ends - lengths)]
        tails = np.maximum(ends - first, 1)  # kernels want a query in each segment
        parts = [np.arange(end - tail, end) for end, tail in zip(ends, tails)]
        at = np.concatenate([*parts, np.arange(ends[-1], ends[-1] + sum(leaves))])
        queries, keys = [*tails.tolist(), *leaves], [*(shared + length for length in lengths), *leaves]
        # 2 at least: fa2 takes segments of at most one query each to have exactly one
        cu_q, cu_k = _cumulative(queries).to(device), _cumulative(keys).to(device)
        segments = Segments(cu_q, cu_k, max(2, *queries), max(keys), True)
        read = np.searchsorted(at, keep)
        return cls(tuple(tails.tolist()), segments, *(torch.from_numpy(x).to(device) for x in (at, read)))


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
        ends: The tokens that ask in the last layer; None where all do and are read.
    """

    shared: int
    lengths: tuple[int, ...]
    branches: Branches | None
    segments: Segments
    keys: Tensor | None
    prompts: Segments | None
    prompt_keys: slice
    masks: dict[tuple[Any, ...], Tensor]
    ends: Ends | None

    @classmethod
    def of(
        cls, lengths: Sequence[int], device: torch.device, branches: Branches | None = None, shared: int = 0,
        keep: NDArray[np.int64] | None = None,
    ) -> Layout:  # fmt: skip
        """The layout of rows of the given lengths, its small tensors on ``device``.

        Args:
            lengths: Tokens of each row's own part.
            device: Where to.
            branches: The branches of each row.
            shared: Tokens of the prefix that all rows see.
            keep: (K,): the tokens whose hidden states are read, ascending; all where not given.
        """
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
        ends = None if keep is None else Ends.of(lengths, shared, leaves, keep, device)
        return cls(shared, tuple(lengths), branches, segments, keys, prompts, prompt_keys, {}, ends)

    @property
    def roots(self) -> int:
        """Tokens before the branches."""
        return self.shared + sum(self.lengths)

    def attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        """As :class:`Attends` says."""
        if not varlen_available(q.device, q.dtype):
            return dense_layout(q, k, v, self, scale)
        return _packed(q, k, v, self, scale, getattr(module, "tuyi_kernel", None))

    def asking(self, x: Tensor) -> Tensor:
        """As :class:`Attends` says."""
        return x if self.ends is None else x.index_select(1, self.ends.at)

    def leaving(self, x: Tensor) -> Tensor:
        """As :class:`Attends` says."""
        return x if self.ends is None else x.index_select(1, self.ends.read)

    def tensors(self) -> Iterator[Tensor]:
        """As :class:`Attends` says."""
        for segments in (self.segments, self.prompts, None if self.ends is None else self.ends.segments):
            if segments is not None:
                yield from (segments.cu_q, segments.cu_k)
        if self.keys is not None:
            yield self.keys
        if self.ends is not None:
            yield from (self.ends.at, self.ends.read)

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
        return dense_segments(q, k, v, cu_seq_lens_q.diff().tolist(), bool(module.is_causal), scaling)[None], None
    assert max_length_q is not None
    kernel: Kernel | None = getattr(module, "tuyi_kernel", None)
    at = Segments(cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, bool(module.is_causal))
    return attend(q, k, v, at, scaling, kernel)[0][None], None


def _packed(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float | None, kernel: Kernel | None) -> Tensor:
    """The language model's attention with kernels: one call for all segments, one more for branches and prompts."""
    segments, roots, first = layout.segments, layout.roots, 0
    if len(q) != len(k):
        assert layout.ends is not None
        segments, roots, first = layout.ends.segments, sum(layout.ends.tails), layout.shared
    if layout.keys is not None:
        k, v = k.index_select(0, layout.keys), v.index_select(0, layout.keys)
    out, lse = attend(q, k[first:], v[first:], segments, scale, kernel)
    if layout.prompts is not None and layout.prompts.max_q:
        leaf_q, leaf_k = q[roots:], k[roots - len(q) :]
        prompt_k, prompt_v = k[layout.prompt_keys], v[layout.prompt_keys]
        prompt, prompt_lse = attend(leaf_q, prompt_k, prompt_v, layout.prompts, scale, kernel)
        own, own_lse = out[roots:], lse[:, roots:]
        if out.requires_grad:
            prompt_lse = lse_with_gradient(prompt_lse, leaf_q, prompt_k, layout.prompts, scale, kernel)
            own_lse = lse_with_gradient(own_lse, leaf_q, leaf_k, layout.leaves(), scale, kernel)
            return torch.cat([out[:roots], join(own, own_lse, prompt, prompt_lse)])
        out[roots:] = join(own, own_lse, prompt, prompt_lse)
    return out


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
