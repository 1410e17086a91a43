"""The language model's last block, computed only where its result is read; keys and values are made of every token."""

from __future__ import annotations

from types import MethodType
from typing import Any

from torch import Tensor

from tuyi.model.attention import NAME
from tuyi.model.layout import Attends

__all__ = ["only_where_read"]


def only_where_read(block: Any) -> None:
    """Let transformers' last block of a language model return hidden states that its layout lets leave.

    Args:
        block: The block; it takes (1, T, D) and returns (1, K, D) from here on, and has the mark ``tuyi_last``.
    """
    block.self_attn.forward = MethodType(_attention, block.self_attn)
    # a class of its own, by the same name: transformers wraps gradient checkpointing around what a class calls forward
    kind = type(block)
    block.__class__ = type(
        kind.__name__, (kind,), {"forward": _block, "tuyi_last": True, "__module__": kind.__module__}
    )


def _block(self: Any, hidden_states: Tensor, layout: Attends, **kwargs: Any) -> Tensor:
    attended, _ = self.self_attn(self.input_layernorm(hidden_states), layout=layout, **kwargs)
    hidden_1KD = layout.leaving(layout.asking(hidden_states) + attended)
    out_1KD: Tensor = hidden_1KD + self.mlp(self.post_attention_layernorm(hidden_1KD))
    return out_1KD


def _attention(
    self: Any, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], layout: Attends, **_: Any
) -> tuple[Tensor, None]:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    q, k, v = (
        project(x).unflatten(-1, (-1, self.head_dim))
        for project, x in (
            (self.q_proj, layout.asking(hidden_states)), (self.k_proj, hidden_states), (self.v_proj, hidden_states)
        )
    )  # fmt: skip
    if hasattr(self, "q_norm"):
        q, k = self.q_norm(q), self.k_norm(k)
    q, k = _rotated(q, *map(layout.asking, position_embeddings)), _rotated(k, *position_embeddings)
    heads = (x.transpose(1, 2) for x in (q, k, v))
    attended, _weights = ALL_ATTENTION_FUNCTIONS[NAME](self, *heads, None, scaling=self.scaling, layout=layout)
    return self.o_proj(attended.flatten(2)), None


def _rotated(x_1THE: Tensor, cos_1TE: Tensor, sin_1TE: Tensor) -> Tensor:
    """Rotary positions, as transformers applies them."""
    from transformers.models.qwen2_vl.modeling_qwen2_vl import rotate_half

    turned: Tensor = rotate_half(x_1THE)
    return x_1THE * cos_1TE.unsqueeze(2) + turned * sin_1TE.unsqueeze(2)
