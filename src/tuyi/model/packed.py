"""Attention over packs by variable-length kernels, on GPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tuyi.model.kernels import Kernel, attend
from tuyi.model.key_sets import join, lse_with_gradient

if TYPE_CHECKING:
    from tuyi.model.layout import Layout

__all__ = ["packed_layout"]


def packed_layout(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float | None, kernel: Kernel | None
) -> Tensor:
    """The attention of a pack: one call for all segments, one more for branches and prompts.

    Args:
        q: (T, H, D), or (Q, H, D) of the tokens that ask in the last layer; k and v: (T, H or fewer, D).
        layout: How its tokens lie.
        scale: Factor on the scores; the usual one where None.
        kernel: The kernel; fa2 where None.

    Returns:
        As q.
    """
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
