"""Attention over packs: rows that must not see each other, a prefix that they share, label branches behind them.

One function is registered with transformers for both towers. Its name contains ``flash`` because transformers hands
``cu_seq_lens_q`` to the vision tower, instead of looping over pictures, only then.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tuyi.model.dense import dense_segments
from tuyi.model.kernels import Kernel, attend, varlen_available
from tuyi.model.layout import Attends
from tuyi.model.segments import Segments
from tuyi.model.trials import fastest

__all__ = ["NAME", "choose_kernels", "register", "use_packed_attention"]

NAME = "tuyi_flash"


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
