"""Blocks of both towers whose matrix products do what follows them: bias, activation, the sum with what came in.

The attention stays transformers' own; its last product is left to the block, which adds to it.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tuyi.model.fp8 import Fp8Linear
from tuyi.model.products import (
    MANY,
    is_gated,
    join,
    linear,
    linear_8,
    linear_activation,
    linear_swiglu,
    rows_of,
    swiglu_8,
)

__all__ = ["fuse_products"]

_ACTIVATIONS = {"QuickGELUActivation": "quick_gelu", "GELUTanh": "gelu_tanh", "PytorchGELUTanh": "gelu_tanh"}
_OURS = (nn.Linear, Fp8Linear)
_PLAIN = (("fc1", "act", "fc2"), ("linear_fc1", "act_fn", "linear_fc2"))


def fuse_products(part: nn.Module) -> int:
    """Let the blocks of a model, or of a part of it, run fused; for prediction, on a GPU where kernels are not refused.

    Blocks that hold other layers than plain ones or :class:`~tuyi.model.fp8.Fp8Linear` stay as they are. Safe to call
    again after layers were replaced; weights are not to change otherwise, some are held in a form of their own.

    Returns:
        How many blocks run so.
    """
    fused = [block for block in part.modules() if _fused(block)]
    for block in {type(block): block for block in fused}.values():
        _warm(block)
    return len(fused)


def _fused(block: Any) -> bool:
    if all(hasattr(block, name) for name in ("norm1", "norm2", "attn", "mlp")):
        attention, last, forward = block.attn, "proj", _vision_forward
    elif all(hasattr(block, name) for name in ("input_layernorm", "post_attention_layernorm", "self_attn", "mlp")):
        attention, last, forward = block.self_attn, "o_proj", _language_forward
    else:
        return False
    summed: Any = getattr(attention, last)
    if type(summed) not in _OURS:
        return False
    summed.forward = _passed_on
    if last == "proj" and type(attention.qkv) is nn.Linear:
        qkv: Any = attention.qkv
        qkv.forward = MethodType(_linear_forward, qkv)
    block.mlp.tuyi_kind = _prepared(block.mlp)
    block.forward = MethodType(forward, block)
    return True


@torch.inference_mode()
def _warm(block: Any) -> None:
    """Have a block's kernels compiled before rows come."""
    summed = block.attn.proj if hasattr(block, "attn") else block.self_attn.o_proj
    device = next(block.parameters()).device
    if device.type != "cuda":
        return
    sizes = summed.in_features, summed.out_features
    inside, outside = (torch.zeros(MANY, size, device=device, dtype=torch.bfloat16) for size in sizes)
    if hasattr(block, "attn"):
        block.attn.qkv(outside)
    summed_up = _added(summed, inside, outside)
    if block.mlp.tuyi_kind != "own":
        _added_mlp(block.mlp, outside, summed_up)


def _prepared(mlp: Any) -> str:
    """Which of the ways below an MLP goes, all made ready for it."""
    for first, activation, last in _PLAIN:
        kind = _ACTIVATIONS.get(type(getattr(mlp, activation, None)).__name__)
        if kind and type(getattr(mlp, first, None)) is type(getattr(mlp, last, None)) is nn.Linear:
            mlp.tuyi_plain = (first, kind, last)
            return "plain"
    if is_gated(mlp, Fp8Linear) and mlp.gate_proj.bias is None:
        join(mlp.gate_proj.weight_8, mlp.up_proj.weight_8)
        return "gated"
    if not is_gated(mlp, nn.Linear):
        return "own"
    if more := -mlp.gate_proj.out_features % 16:
        _widen(mlp, more)
        return "wide"
    join(mlp.gate_proj.weight, mlp.up_proj.weight)
    return "gated"


def _widen(mlp: Any, more: int) -> None:
    """Put zeros behind the inner values: kernels fetch 16 bytes at a time (Qwen2.5-VL's tower has 3,420 of them)."""
    gate, up, down = mlp.gate_proj, mlp.up_proj, mlp.down_proj
    size = gate.out_features
    wide = [F.pad(layer.weight.data, (0, 0, 0, more)) for layer in (gate, up)]
    join(*wide)
    wide.append(F.pad(down.weight.data, (0, more)))
    gate.weight.data, up.weight.data, down.weight.data = wide[0][:size], wide[1][:size], wide[2][:, :size]
    biases = [None if layer.bias is None else F.pad(layer.bias.data, (0, more)) for layer in (gate, up)]
    mlp.tuyi_wide = (*wide, *biases)


def _passed_on(x: Tensor) -> Tensor:
    return x


def _linear_forward(self: Any, x: Tensor) -> Tensor:
    out: Tensor = linear(x, self.weight, self.bias, None)
    return out


def _vision_forward(self: Any, hidden_states: Tensor, **kwargs: Any) -> Tensor:
    attended = self.attn(self.norm1(hidden_states), **kwargs)
    hidden_states = _added(self.attn.proj, attended, hidden_states)
    return _added_mlp(self.mlp, self.norm2(hidden_states), hidden_states)


def _language_forward(self: Any, hidden_states: Tensor, **kwargs: Any) -> Tensor:
    attended, _ = self.self_attn(self.input_layernorm(hidden_states), **kwargs)
    if not hasattr(self, "tuyi_last"):
        hidden_states = _added(self.self_attn.o_proj, attended, hidden_states)
    else:
        layout = kwargs["layout"]
        hidden_states = layout.leaving(_added(self.self_attn.o_proj, attended, layout.asking(hidden_states)))
    return _added_mlp(self.mlp, self.post_attention_layernorm(hidden_states), hidden_states)


def _added(layer: Any, x: Tensor, residual: Tensor) -> Tensor:
    """``residual + layer(x)``."""
    out: Tensor
    if isinstance(layer, Fp8Linear):
        values, scale = layer.rounded(rows_of(x))
        residual = residual if layer.bias is None else residual + layer.bias
        out = linear_8(values, scale, layer.weight_8, layer.scale, rows_of(residual))
        return out.view_as(residual)
    out = linear(x, layer.weight, layer.bias, residual)
    return out


def _added_mlp(mlp: Any, x: Tensor, residual: Tensor) -> Tensor:
    """``residual + mlp(x)``."""
    out: Tensor
    if mlp.tuyi_kind == "own":
        out = residual + mlp(x)
        return out
    if mlp.tuyi_kind == "plain":
        first, activation, last = mlp.tuyi_plain
        layer = getattr(mlp, first)
        return _added(getattr(mlp, last), linear_activation(x, layer.weight, layer.bias, activation), residual)
    if mlp.tuyi_kind == "wide":
        gate_HK, up_HK, down_NH, *biases = mlp.tuyi_wide
        out = linear(linear_swiglu(x, gate_HK, up_HK, *biases), down_NH, mlp.down_proj.bias, residual)
        return out
    gate, up = mlp.gate_proj, mlp.up_proj
    if isinstance(gate, Fp8Linear):
        values, scale = gate.rounded(rows_of(x))
        inner = swiglu_8(values, scale, gate.weight_8, up.weight_8, gate.scale, up.scale)
        inner = inner.view(*x.shape[:-1], gate.out_features)
    else:
        inner = linear_swiglu(x, gate.weight, up.weight, gate.bias, up.bias)
    return _added(mlp.down_proj, inner, residual)
