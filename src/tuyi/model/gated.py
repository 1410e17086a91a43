"""A gated MLP that learns, its activation and the activation's gradient made where the matrix products make them.

``out = (silu(x @ gate.T) * (x @ up.T)) @ down.T``. What a graph keeps of it are its input and the two halves before the
activation; the activation is made again on the way back, where it costs nothing.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tuyi.model.products import is_gated, join, many, one_piece, rows_of

__all__ = ["fuse_gated_mlps", "gated_mlp"]


@torch.library.custom_op("tuyi::gated_mlp", mutates_args=())
def gated_mlp(x: Tensor, gate_HK: Tensor, up_HK: Tensor, down_NH: Tensor) -> tuple[Tensor, Tensor]:
    """The MLP.

    Args:
        x: (…, K).

    Returns:
        (…, N), and for the way back (R, 2 H): what was before the activation, one value of ``gate``, one of ``up``.
    """
    rows_RK = rows_of(x)
    if many(x, gate_HK):
        from tuyi.model.epilogues import swiglu

        inner_RH = x.new_empty(len(rows_RK), len(gate_HK))
        halves_R2H = x.new_empty(len(rows_RK), 2 * len(gate_HK))
        swiglu(rows_RK, one_piece(gate_HK, up_HK), inner_RH, halves_M2H=halves_R2H)
    else:
        gate, up = F.linear(rows_RK, gate_HK), F.linear(rows_RK, up_HK)
        inner_RH, halves_R2H = F.silu(gate) * up, torch.stack([gate, up], dim=-1).flatten(1)
    return F.linear(inner_RH, down_NH).view(*x.shape[:-1], len(down_NH)), halves_R2H


@torch.library.custom_op("tuyi::gated_mlp_backward", mutates_args=())
def gated_mlp_backward(
    d_out: Tensor, x: Tensor, halves_R2H: Tensor, gate_HK: Tensor, up_HK: Tensor, down_NH: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the input, of ``gate`` and ``up`` in one piece (2 H, K), and of ``down``."""
    d_rows, rows_RK = rows_of(d_out), rows_of(x)
    if many(x, gate_HK):
        from tuyi.model.epilogues import joined_gradient, joined_input_gradient, swiglu_gradient

        d_halves, inner_RH = torch.empty_like(halves_R2H), x.new_empty(len(rows_RK), len(gate_HK))
        swiglu_gradient(d_rows, down_NH, halves_R2H, d_halves, inner_RH)
        both_2HK = one_piece(gate_HK, up_HK)
        d_x, d_both = torch.empty_like(rows_RK), torch.empty_like(both_2HK)
        joined_input_gradient(d_halves, both_2HK, d_x)
        joined_gradient(d_halves, rows_RK, d_both)
        return d_x.view_as(x), d_both, d_rows.t() @ inner_RH
    gate, up = halves_R2H.unflatten(1, (-1, 2)).unbind(-1)
    share = torch.sigmoid(gate)
    silu = gate * share
    d_inner = d_rows @ down_NH
    d_up = d_inner * silu
    d_gate = d_inner * up * (share + silu * (1 - share))
    d_x = d_gate @ gate_HK + d_up @ up_HK
    return d_x.view_as(x), torch.cat([d_gate.t() @ rows_RK, d_up.t() @ rows_RK]), d_rows.t() @ (silu * up)


@gated_mlp.register_fake
def _(x: Tensor, gate_HK: Tensor, up_HK: Tensor, down_NH: Tensor) -> tuple[Tensor, Tensor]:
    rows = x.numel() // x.shape[-1]
    return x.new_empty(*x.shape[:-1], down_NH.shape[0]), x.new_empty(rows, 2 * gate_HK.shape[0])


@gated_mlp_backward.register_fake
def _(
    d_out: Tensor, x: Tensor, halves_R2H: Tensor, gate_HK: Tensor, up_HK: Tensor, down_NH: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    height, width = gate_HK.shape
    return torch.empty_like(x), x.new_empty(2 * height, width), torch.empty_like(down_NH)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    x, gate_HK, up_HK, down_NH = inputs
    ctx.save_for_backward(x, output[1], gate_HK, up_HK, down_NH)
    ctx.set_materialize_grads(False)


def _back(ctx: Any, d_out: Tensor, d_halves: None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    assert d_halves is None, "nothing but the way back reads the halves"
    d_x, d_both, d_down = gated_mlp_backward(d_out, *ctx.saved_tensors)
    d_gate, d_up = d_both.chunk(2)
    return d_x, d_gate, d_up, d_down


gated_mlp.register_autograd(_back, setup_context=_keep)


def _forward(self: Any, x: Tensor) -> Tensor:
    out: Tensor = gated_mlp(x, self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight)[0]
    return out


def fuse_gated_mlps(part: nn.Module) -> int:
    """Let gated MLPs whose weights all learn run so; for one GPU, or several with whole weights each.

    Returns:
        How many do.
    """
    count = 0
    mlp: Any
    for mlp in part.modules():
        if not is_gated(mlp, nn.Linear):
            continue
        layers = (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
        if all(layer.bias is None and layer.weight.requires_grad for layer in layers):
            join(mlp.gate_proj.weight, mlp.up_proj.weight)
            mlp.forward = MethodType(_forward, mlp)
            count += 1
    return count
